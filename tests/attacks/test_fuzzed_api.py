"""Requests made up from the server's own OpenAPI document: whatever comes, the answer is one that it names."""

import os
from pathlib import Path

import pytest
from tests.neuronscope.server.running import running

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")

# What searches, trains or loads takes its time, and is called with made-up values elsewhere.
LONG = r"/api/(pruning/(optimize|apply|safe-set|neuron-importance)|models/(switch|load)|compare|jobs/.*/(events|again))"


@pytest.mark.filterwarnings("ignore")
def test_every_answer_is_one_of_those_documented(tmp_path: Path) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks as conformance

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    checks = [
        not_a_server_error,
        conformance.status_code_conformance,
        conformance.content_type_conformance,
        conformance.response_schema_conformance,
    ]
    called = []
    with running(tmp_path, "digits-vit") as api:
        api.get("/api/models/current")
        address = str(api.base_url).rstrip("/")
        document = schemathesis.openapi.from_url(f"{address}/api/openapi.json").exclude(path_regex=LONG)
        for found in document.get_all_operations():
            operation = found.ok()

            @given(case=operation.as_strategy())
            @settings(
                max_examples=12,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def tried(case: object) -> None:
                case.call_and_validate(base_url=address, checks=checks, timeout=120)  # type: ignore[attr-defined]

            tried()
            called.append(operation.label)
    assert len(called) >= 20
    assert "POST /api/pruning/impact-analysis" in called
