def write(records):
    import json

    return json.dumps(list(records.values()), indent=1)
