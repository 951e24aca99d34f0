"""A run's results, put together as its report."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pruner import report_text as text
from pruner.captured import PROOF
from pruner.report import (
    PROFILE_BINS,
    REASONS,
    Better,
    Bin,
    Check,
    Environment,
    Epoch,
    Figure,
    FrozenNeurons,
    Layer,
    Removal,
    Report,
    Suggestion,
    Unit,
    Unproven,
)
from pruner.results import Measured, PrunedLayer, TrackedLayer, WorkflowResults


def build_report(results: WorkflowResults) -> Report:
    """The report of a run, from its results alone."""
    run, tracking, pruning = results["run"], results["tracking_results"], results["pruning_results"]
    verification = results["verification_results"]
    environment = results["environment"]
    removals = _removals(pruning["layers"], tracking["layers"], results["recommendations"])
    figures = _figures(results["metrics"]["before"], results["metrics"]["after"])
    checks = tuple(Check.model_validate(check) for check in verification["checks"])
    return Report(
        run=run["name"],
        model_name=run["model_name"],
        model=run["model"],
        started=run["started"],
        seconds=run["seconds"],
        outcome=run["outcome"],
        headline=_headline(results, figures),
        summary=_summary(results),
        strategy=pruning["strategy"],
        figures=figures,
        custom=results["metrics"]["custom"],
        layers=tuple(_layer(name, layer, pruning["layers"].get(name)) for name, layer in tracking["layers"].items()),
        reasons=dict(Counter(removal.reason for removal in removals).most_common()),
        removals=removals,
        suggestions=_suggestions(results["recommendations"], removals),
        passed=verification["summary"]["passed"],
        total=verification["summary"]["total"],
        checks=checks,
        not_checked=tuple(verification["not_checked"]),
        measured=Unproven.model_validate(verification["measured"]) if verification["measured"] else None,
        proven=_proven(results),
        repair=pruning.get("repair"),
        budgets=pruning.get("budgets"),
        frozen=tuple(FrozenNeurons.model_validate(entry) for entry in tracking["frozen"]),
        operators_without_rule=tracking["operators_without_rule"],
        loading=_loading(results),
        history=tuple(Epoch.model_validate(epoch) for epoch in tracking["history"]),
        environment=Environment.model_validate({**environment, "batches": tracking["batches"]}),
        files=results["outputs"],
        warnings=tuple(pruning["warnings"]),
    )


def _figures(before: Measured, after: Measured | None) -> tuple[Figure, ...]:
    figures: list[Figure] = []

    def add(name: str, unit: Unit, first: float | None, second: float | None, better: Better) -> None:
        if first is not None and (after is None or second is not None):
            figures.append(Figure(name=name, unit=unit, before=first, after=second, better=better))

    # A missing model after has no figures at all: `after` stays None on every line.
    late: Mapping[str, Any] = after or {}
    add("neurons", "count", before["neurons"], late.get("neurons"), "lower")
    add("parameters", "count", before["parameters"], late.get("parameters"), "lower")
    add("size", "bytes", before["bytes"], late.get("bytes"), "lower")
    add("FLOPs", "flops", before["flops"], late.get("flops"), "lower")
    add("latency", "milliseconds", before["latency_ms"], late.get("latency_ms"), "lower")
    add("accuracy", "share", before["accuracy"], late.get("accuracy"), "higher")
    for name, value in before["quality"].items():
        add(name, "number", value, late.get("quality", {}).get(name), "higher")
    return tuple(figures)


def _layer(name: str, tracked: TrackedLayer, pruned: PrunedLayer | None) -> Layer:
    size, firing = tracked["size"], tracked["firing_frequency"]
    removed = set(pruned["removed"]) if pruned else set()
    bins = min(size, PROFILE_BINS)
    profile = []
    for index in range(bins):
        neurons = range(index * size // bins, (index + 1) * size // bins)
        profile.append(
            Bin(
                size=len(neurons),
                firing=sum(firing[neuron] for neuron in neurons) / len(neurons) if firing else None,
                removed=sum(neuron in removed for neuron in neurons),
            )
        )
    return Layer(
        name=name,
        kind=tracked["kind"],
        exact=tracked["exact"],
        note=tracked["note"],
        before=size,
        after=size - len(removed),
        profile=tuple(profile),
    )


def _removals(
    layers: Mapping[str, PrunedLayer], tracked: Mapping[str, TrackedLayer], recommendations: Mapping[str, Any]
) -> tuple[Removal, ...]:
    """Every removed neuron with its reason, and the evidence that the tracker has for it."""
    named = {(entry["layer"], entry["neuron"]): entry["evidence"] for entry in recommendations.get("prune", [])}
    removals = []
    for name, layer in layers.items():
        firing = tracked[name]["firing_frequency"]
        for neuron, score, reason in zip(layer["removed"], layer["scores"], layer["reasons"], strict=True):
            numbers = named.get((name, neuron)) or ({"firing_frequency": firing[neuron]} if firing else {})
            evidence = text.evidence(reason, numbers)
            removals.append(Removal(layer=name, neuron=neuron, reason=reason, evidence=evidence, score=score))
    rank = {reason: place for place, reason in enumerate(REASONS)}
    return tuple(sorted(removals, key=lambda removal: rank.get(removal.reason, -1)))


def _suggestions(recommendations: Mapping[str, Any], removals: tuple[Removal, ...]) -> tuple[Suggestion, ...]:
    """What is left to do: a pair of which one neuron has gone is done."""
    gone = {(removal.layer, removal.neuron) for removal in removals}
    merge = (
        Suggestion(
            kind="merge",
            layer=entry["layer"],
            detail=f"neurons {entry['neurons'][0]} and {entry['neurons'][1]} correlate at {entry['correlation']:.3f}",
        )
        for entry in recommendations.get("merge", [])
        if not any((entry["layer"], neuron) in gone for neuron in entry["neurons"])
    )
    expand = (
        Suggestion(
            kind="expand",
            layer=entry["layer"],
            detail=f"{entry['reason']} ({text.plain(entry['evidence'])}); try {entry['suggested']} neurons",
        )
        for entry in recommendations.get("expand", [])
    )
    return (*expand, *merge)


def _headline(results: WorkflowResults, figures: tuple[Figure, ...]) -> str:
    outcome, pruning = results["run"]["outcome"], results["pruning_results"]
    summary = results["verification_results"]["summary"]
    neurons = text.count(pruning["neurons_before"], "neuron")
    checks = f"{summary['passed']}/{text.count(summary['total'], 'check')}"
    if outcome == "dry run":
        return f"Dry run: {pruning['neurons_pruned']:,} of {neurons} would go"
    if outcome == "nothing to remove":
        return f"Nothing to remove: all {neurons} stay"
    if outcome == "restored":
        return f"Restored: only {checks} passed, so the model is as it was"
    parts = [phrase for figure in figures if (phrase := _phrase(figure))]
    proof = f"proven: {checks}" if _proven(results) else f"{checks} passed" if summary["total"] else "not verified"
    if measured := results["verification_results"]["measured"]:
        proof = f"{checks} passed, {text.count(len(measured['layers']), 'layer')} not exact"
    sentence = ", ".join([*parts, proof])
    return sentence[:1].upper() + sentence[1:]


def _proven(results: WorkflowResults) -> bool:
    """Whether all of the sliced model was compared with the masked one, and every check passed."""
    verification = results["verification_results"]
    if verification["measured"]:
        return False
    compared = any(check["name"] == PROOF for check in verification["checks"])
    return compared and verification["summary"]["overall_success"]


def _phrase(figure: Figure) -> str:
    """What the headline says about a figure; nothing about most."""
    if figure.after is None:
        return ""
    if figure.name == "parameters":
        return text.smaller(int(figure.before), int(figure.after))
    if figure.unit == "milliseconds":
        return text.speed(figure.before, figure.after)
    if figure.better == "higher":
        return text.quality(figure.name, figure.before, figure.after, as_percent=figure.unit == "share")
    return ""


def _summary(results: WorkflowResults) -> str:
    run, pruning, layers = results["run"], results["pruning_results"], results["tracking_results"]["layers"]
    model = run["model_name"]
    share = f"{pruning['neurons_pruned']:,} of {text.count(pruning['neurons_before'], 'neuron')}"
    where = f"{pruning['layers_affected']} of {text.count(len(layers), 'layer')}"
    if run["outcome"] == "pruned":
        repair = pruning.get("repair")
        who = "the repaired original" if repair and repair["repaired"] else "the original"
        said = f" What is left answers as {who} does with those neurons silenced." if _proven(results) else ""
        if measured := results["verification_results"]["measured"]:
            said = f" {text.difference(measured)}"
        return f"{share} were taken out of {where} of {model}.{said}"
    if run["outcome"] == "dry run":
        return f"{share} would be taken out of {where} of {model}. The plan fits the model; the model is unchanged."
    if run["outcome"] == "restored":
        tried = sum(len(neurons) for neurons in pruning["plan"]["remove"].values())
        return f"{text.count(tried, 'neuron')} were taken out of {model}, a check failed, and every one was put back."
    return f"No neuron of {model} met the conditions for removal. The model is unchanged."


def _loading(results: WorkflowResults) -> str:
    """Python that loads the result."""
    run, directory = results["run"], json.dumps(results["outputs"].get("pruned_model"))
    if run["outcome"] != "pruned":
        return ""
    if run["base"] is not None:
        return (
            "from neuronscope.model_names import load_model\n\n"
            f"directory = {directory}\n"
            f"model = load_model(directory, original={json.dumps(run['base'])})\n"
        )
    return (
        "from pruner import load_pruned\n\n"
        f"directory = {directory}\n"
        f"# {run['model']} stands for what builds the original model: the class, or any function without arguments.\n"
        f"model = load_pruned(directory, {run['model']})\n"
    )
