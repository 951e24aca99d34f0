"""Every endpoint against what the Python packages say, over a real connection."""

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tests.neuronscope.server.running import running

from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.inputs import batches_of
from neuronscope.loader import MultiModelLoader
from neuronscope.samples import sample_inputs
from neuronscope.tables import columns_of
from neuronscope.weights import WeightAnalyzer
from pruner import load_pruned
from pruner.compensation.targets import left_of

pytest.importorskip("fastapi")
pytest.importorskip("transformers")

TEXTS = ["import os\nimport sys\n", "class Parser:\n    def read(self, path):"]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("server")) as client:
        yield client


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("small"), "digits-vit") as client:
        yield client


@pytest.fixture(scope="module")
def here() -> PruningImpactAnalyzer:
    return PruningImpactAnalyzer(*MultiModelLoader().load_model("stdlib-gpt"))


def got(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_weights(api: httpx.Client, here: PruningImpactAnalyzer) -> None:
    weights = WeightAnalyzer(here.model)
    told, expected = got(api.get("/api/pruning/weight-analysis")), weights.get_sparsity_analysis()
    assert told.keys() == expected.keys()
    assert told["layer_sparsity"] == expected["layer_sparsity"]
    assert told["total_parameters"] == expected["total_parameters"]
    for one, other in zip(told["layer_stats"], expected["layer_stats"], strict=True):
        assert one.pop("layer_name") == other.pop("layer_name")
        assert one == pytest.approx(other, rel=1e-5)  # another number of threads adds up in another order
    for threshold in (10.0, 2.5):
        told = got(api.get("/api/pruning/candidates", params={"threshold": threshold}))
        rows = [asdict(one) for one in weights.identify_pruning_candidates(threshold)]
        # The numbers travel as floats of 4 bytes.
        for name, values in columns_of(rows).items():
            found = [one[name] for one in told["candidates"]]
            assert found == (pytest.approx(values, rel=1e-6) if isinstance(values[0], float) else values), name
        assert told["total_candidates"] == len(rows) == 6 * 768
        assert told["flagged_candidates"] == sum(one["is_pruning_candidate"] for one in rows)
        assert told["threshold_percentile"] == threshold
    patterns = got(api.get("/api/pruning/sparsity-patterns"))["patterns"]
    assert [one["layer_name"] for one in patterns] == list(weights.get_sparsity_patterns())
    assert {"two_of_four", "gini", "effective_rank", "outliers"} <= patterns[0].keys()


def test_the_neurons_in_numbers(api: httpx.Client, here: PruningImpactAnalyzer) -> None:
    columns = WeightAnalyzer(here.model).neuron_columns()
    for metric, column in (("magnitude", "weight_magnitude"), ("rank", "weight_rank"), ("score", "pruning_score")):
        body = api.get("/api/neurons.bin", params={"metric": metric}).content
        np.testing.assert_allclose(np.frombuffer(body, "<f4"), columns[column], rtol=1e-6)
    one = got(api.get("/api/neurons/2/700"))
    assert (one["layer_index"], one["neuron_index"], one["layer_name"]) == (2, 700, "transformer.h.2")
    at = 2 * 768 + 700
    assert one["weight_rank"] == columns["weight_rank"][at]
    assert one["weight_magnitude"] == pytest.approx(columns["weight_magnitude"][at], rel=1e-6)


def test_an_impact_is_that_of_python(api: httpx.Client, here: PruningImpactAnalyzer) -> None:
    asked = {"layer_index": 1, "neuron_indices": [3, 5, 8], "input_text": TEXTS[0]}
    told = got(api.post("/api/pruning/impact-analysis", json=asked))
    expected = here.simulate_neuron_pruning(1, [3, 5, 8], TEXTS[0]).to_json()
    assert told["impact_score"] == pytest.approx(expected["impact_score"], rel=1e-4)
    assert told["mean_change"] == pytest.approx(expected["mean_change"], rel=1e-4)
    assert told["affected_neurons"] == expected["affected_neurons"]
    assert told["safe_to_prune"] is expected["safe_to_prune"]
    assert told.keys() == expected.keys()
    chosen = [(0, 1), (4, 700)]
    for ablation in ("zero", "mean", "repaired"):
        asked = {"neurons": chosen, "input_texts": TEXTS, "ablation": ablation, "continuations": 4}
        told = got(api.post("/api/pruning/simulate", json=asked))
        assert told["ablation"] == ablation
        found = here.simulate(chosen, TEXTS, ablation=ablation)  # type: ignore[arg-type]
        assert told["impact_score"] == pytest.approx(found.impact_score, rel=1e-3)
    assert told["neurons"] == 2
    assert told["saved"]["parameters_before"] - told["saved"]["parameters_after"] == 2 * (192 + 192 + 1)
    assert [one["text"] for one in told["continuations"]] == TEXTS
    assert told["continuations"][0]["before"] == here.continuations(chosen, TEXTS, tokens=4)[0]["before"]


def test_importance_of_a_layer_and_a_batch(api: httpx.Client, here: PruningImpactAnalyzer) -> None:
    told = got(api.post("/api/pruning/neuron-importance", json={"layer_index": 3, "input_texts": TEXTS}))
    expected = here.analyze_neuron_importance(TEXTS, 3)
    assert told["total_neurons"] == 768
    assert told["critical_neurons"] == sum(one.is_critical for one in expected)
    assert told["importance_scores"][7] == pytest.approx(asdict(expected[7]), rel=1e-3)
    assert told["method"] == "second-order"
    chosen = [{"layer_index": 0, "neuron_index": 4}, {"layer_index": 5, "neuron_index": 9}]
    told = got(api.post("/api/pruning/batch-analysis", json={"pruning_candidates": chosen, "input_texts": TEXTS}))
    assert told["individual_impacts"][1]["impact_score"] == pytest.approx(
        here.simulate([(5, 9)], TEXTS).impact_score, rel=1e-3
    )
    assert told["cumulative_impact"]["impact_score"] == pytest.approx(
        here.simulate([(0, 4), (5, 9)], TEXTS).impact_score, rel=1e-3
    )
    assert told["recommendations"]["suggested_batch_size"] == 2
    none = got(api.post("/api/pruning/batch-analysis", json={"pruning_candidates": [], "input_texts": TEXTS}))
    assert none["cumulative_impact"] is None


def test_a_safe_set_is_safe_and_more_is_not(api: httpx.Client) -> None:
    told = got(api.post("/api/pruning/safe-set", json={"input_texts": TEXTS, "threshold": 0.05}))
    again = got(api.post("/api/pruning/simulate", json={"neurons": told["neurons"], "input_texts": TEXTS}))
    assert again["impact_score"] == pytest.approx(told["impact_score"], rel=1e-3)
    assert again["impact_score"] < 0.05
    assert len(told["neurons"]) > 200


def test_one_neuron_in_detail(api: httpx.Client, here: PruningImpactAnalyzer) -> None:
    told = got(api.get("/api/neurons/1/5", params={"details": True}))
    assert sum(told["activations"]["counts"]) == told["activations"]["places"] > 500
    assert told["impact"].keys() == {"zero", "mean", "repaired"}
    assert len(told["top_tokens"]) == 10
    sizes = [abs(one["activation"]) for one in told["top_tokens"]]
    assert sizes == sorted(sizes, reverse=True)
    assert told["correlated"][0]["neuron_index"] != 5


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (
            "impact-analysis",
            {"layer_index": 6, "neuron_indices": [0], "input_text": "a"},
            404,
            "6 is none of them",
        ),
        (
            "impact-analysis",
            {"layer_index": 0, "neuron_indices": [768], "input_text": "a"},
            422,
            "768 is none of them",
        ),
        ("impact-analysis", {"layer_index": 0, "neuron_indices": [], "input_text": "a"}, 422, "neuron_indices: "),
        ("impact-analysis", {"layer_index": 0, "neuron_indices": [-1], "input_text": "a"}, 422, "neuron_indices.0: "),
        ("impact-analysis", {"layer_index": 0, "neuron_indices": [True], "input_text": "a"}, 422, "neuron_indices.0: "),
        ("impact-analysis", {"layer_index": 0, "neuron_indices": [1], "input_text": ""}, 422, "input_text: "),
        ("impact-analysis", {"layer_index": 0, "neuron_indices": [1], "input_text": "  "}, 422, "texts is empty"),
        ("impact-analysis", {"layer_index": 0, "neuron_indices": [1], "text": "a"}, 422, "input_text: "),
        ("neuron-importance", {"layer_index": 99, "input_texts": ["a"]}, 404, "99 is none"),
        ("neuron-importance", {"layer_index": 0, "input_texts": ["a"] * 65}, 422, "input_texts: "),
        ("batch-analysis", {"pruning_candidates": [{"layer_index": 0}], "input_texts": ["a"]}, 422, "neuron_index: "),
        ("simulate", {"neurons": [[0, 1, 2]], "input_texts": ["a"]}, 422, "neurons.0: "),
        ("simulate", {"neurons": [[0, 1]], "ablation": "half"}, 422, "ablation: "),
        ("optimize", {}, 422, "either a tolerance or a target"),
        ("export", {"type": "weights"}, 422, "type: "),
    ],
)
def test_what_is_wrong_is_said(api: httpx.Client, path: str, body: dict[str, Any], status: int, says: str) -> None:
    told = got(api.post(f"/api/pruning/{path}", json=body), status)
    assert told.keys() == {"error", "details"}
    assert says in told["error"]
    assert told["details"]


def test_malformed_requests(api: httpx.Client) -> None:
    broken = api.post("/api/pruning/simulate", content=b"{", headers={"Content-Type": "application/json"})
    assert got(broken, 422).keys() == {"error", "details"}
    assert got(api.get("/api/pruning/candidates?threshold=nan"), 422)["error"].startswith("threshold")
    assert got(api.get("/api/pruning/candidates?threshold=101"), 422)["error"].startswith("threshold")
    assert "is none of them" in got(api.get("/api/neurons/0/768"), 422)["error"]
    assert got(api.get("/api/neurons/-1/0"), 404)
    assert got(api.get("/api/nothing"), 404)["details"]
    assert got(api.put("/api/health"), 405)["error"] == "Method Not Allowed"
    assert got(api.get("/api/neurons.bin?metric=beauty"), 422)["error"].startswith("metric")


def test_models_by_name(api: httpx.Client) -> None:
    told = got(api.get("/api/models"))
    assert told["current_model"] == "stdlib-gpt"
    entry = told["models"]["stdlib-gpt"]
    assert (entry["family"], entry["layers"], entry["hidden_size"], entry["recommended"]) == ("gpt2", 6, 192, True)
    assert got(api.get("/api/models/stdlib-llama"))["family"] == "llama"
    card = got(api.get("/api/models/current"))
    assert (card["layer_sizes"], card["reads"], card["writes"]) == ([768] * 6, "texts", True)
    assert card["parameters"] == sum(p.numel() for p in reference.load("stdlib-gpt").model.parameters())
    memory = got(api.get("/api/models/memory"))
    assert memory["model_bytes"] == 4 * card["parameters"]
    assert got(api.post("/api/models/switch", json={"model_name": "no-such-model"}), 404)["error"]
    assert got(api.get("/api/models"))["current_model"] == "stdlib-gpt"
    assert got(api.get("/api/health"))["status"] == "healthy"


def test_a_job_instead_of_waiting(api: httpx.Client) -> None:
    asked = {"layer_index": 2, "neuron_indices": [1], "input_text": "def f(x):"}
    answer = api.post("/api/pruning/impact-analysis", json=asked, headers={"Prefer": "respond-async"})
    job = got(answer, 202)
    assert answer.headers["location"] == f"/api/jobs/{job['id']}"
    events = _events(api.get(f"/api/jobs/{job['id']}/events").text)
    assert [data["state"] for _, kind, data in events if kind == "state"] == ["queued", "running", "done"]
    numbers = [number for number, _, _ in events]
    assert numbers == sorted(numbers)
    late = api.get(f"/api/jobs/{job['id']}/events", headers={"Last-Event-ID": str(numbers[-2])}).text
    assert _events(late) == events[-1:]
    result = got(api.get(f"/api/jobs/{job['id']}/result"))
    assert result == got(api.post("/api/pruning/impact-analysis", json=asked))
    latest = got(api.get("/api/jobs"))["jobs"][0]
    assert latest["cached"] is True
    assert got(api.get(f"/api/jobs/{job['id']}"))["cached"] is False
    assert got(api.post(f"/api/jobs/{job['id']}/again"), 202)["kind"] == "impact"
    for path in ("", "/result", "/events"):
        assert api.get(f"/api/jobs/nothing{path}").status_code == 404


def _events(text: str) -> list[tuple[int, str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_selections_are_kept_and_travel(api: httpx.Client) -> None:
    made = got(api.post("/api/selections", json={"name": "idle", "neurons": [[1, 7], [0, 3], [0, 3]]}), 201)
    assert made["neurons"] == [[0, 3], [1, 7]]
    path = f"/api/selections/{made['id']}"
    changed = got(api.put(path, json={"name": "<b>idle</b>", "neurons": [[2, 2]]}))
    assert (changed["name"], changed["neurons"], changed["created"]) == ("<b>idle</b>", [[2, 2]], made["created"])
    assert got(api.get(path)) == changed
    file = got(api.get(f"{path}/export"))
    copy = got(api.post("/api/selections/import", json=file), 201)
    assert copy["id"] != made["id"]
    assert copy["neurons"] == [[2, 2]]
    assert {made["id"], copy["id"]} <= {one["id"] for one in got(api.get("/api/selections"))["selections"]}
    assert (
        "Load that model first"
        in got(api.post("/api/selections/import", json=file | {"fingerprint": "0"}), 409)["details"]
    )
    assert got(api.post("/api/selections", json={"name": "x", "neurons": [[9, 0]]}), 404)
    assert api.delete(path).status_code == 204
    assert got(api.delete(path), 404)
    assert got(api.get(path), 404)


@pytest.mark.parametrize("kind", ["weight", "impact"])
def test_exports_hold_every_row(api: httpx.Client, kind: str) -> None:
    got(api.post("/api/pruning/simulate", json={"neurons": [[0, 1]], "input_texts": ["import"]}))
    counts = set()
    for form in ("json", "csv", "parquet", "npz"):
        told = got(api.post("/api/pruning/export", json={"type": kind, "format": form}))
        body = api.get(told["download"]).content
        assert Path(told["file_path"]).read_bytes() == body
        if form == "json":
            content = json.loads(body)
            counts.add(len(content["rows"]))
            assert (content["type"], content["model"]) == (kind, "stdlib-gpt")
        elif form == "csv":
            counts.add(len(body.decode().splitlines()) - 1)
        elif form == "parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            counts.add(parquet.read_table(io.BytesIO(body)).num_rows)
        else:
            counts.add(len(np.load(io.BytesIO(body))["layer_index" if kind == "weight" else "impact_score"]))
    assert len(counts) == 1
    assert counts.pop() == 6 * 768 if kind == "weight" else counts.pop() > 0
    assert got(api.get("/api/exports/weight-1.json"), 404)


def test_from_a_selection_to_a_smaller_model(small: httpx.Client, tmp_path: Path) -> None:
    """Apply, take away, compare, fine-tune, and go back."""
    card = got(small.get("/api/models/current"))
    gone = [[layer, neuron] for layer in range(card["layers"]) for neuron in range(20)]
    asked = {"neurons": gone, "name": "eighty fewer"}
    made = got(small.post("/api/pruning/apply", json=asked))
    assert made["neurons_pruned"] == len(gone)
    assert made["verification"]["overall_success"] is True
    archive = zipfile.ZipFile(io.BytesIO(small.get(made["download"]).content))
    archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    pruned = load_pruned(folder, reference.load("digits-vit").model)
    assert sum(p.numel() for p in pruned.parameters()) == made["metrics"]["after"]["parameters"] < card["parameters"]
    assert sum(map(len, json.loads((folder / "plan.json").read_text())["remove"].values())) == len(gone)
    page = small.get(made["report"])
    assert "sandbox" in page.headers["content-security-policy"]
    assert "chosen by hand" in page.text or "was chosen by a person" in page.text

    told = got(small.post("/api/compare", json={"models": [made["model_name"]]}))
    other = told["models"][made["model_name"]]
    assert other["parameters"] == made["metrics"]["after"]["parameters"]
    assert 0 < other["metrics"]["score"] < 0.3
    (layer, *_) = told["layers"][made["model_name"]]
    assert (layer["before"], layer["after"]) == (card["layer_sizes"][0], card["layer_sizes"][0] - 20)
    assert [one["of"] for one in layer["neurons"]] == list(range(20, card["layer_sizes"][0]))

    job = got(small.post("/api/finetune/jobs", json={"model_name": made["model_name"], "steps": 3}), 202)
    small.get(f"/api/jobs/{job['id']}/events")
    tuned = got(small.get(f"/api/jobs/{job['id']}/result"))
    assert tuned["after"] >= tuned["before"]
    assert got(small.post("/api/models/switch", json={"model_name": tuned["model_name"]}))["current_model"]
    assert got(small.get("/api/models/current"))["layer_sizes"][0] == card["layer_sizes"][0] - 20
    assert small.get(tuned["download"]).status_code == 200
    got(small.post("/api/models/switch", json={"model_name": "digits-vit"}))
    assert got(small.get("/api/models/current"))["fingerprint"] == card["fingerprint"]
    assert got(small.post("/api/finetune/jobs", json={"model_name": "digits-vit"}), 404)


def test_a_point_of_the_front_is_a_selection(small: httpx.Client) -> None:
    got(small.post("/api/models/switch", json={"model_name": "digits-vit"}))
    found = got(small.post("/api/pruning/optimize", json={"target": {"params": 0.8}}))
    (point, *_) = found["front"]
    assert point["parameters"] == pytest.approx(0.8, abs=0.02)
    assert found["front"][found["chosen"]] == max(found["front"], key=lambda one: one["metric"])
    told = got(small.post("/api/pruning/simulate", json={"neurons": point["neurons"]}))
    saved = told["saved"]
    assert saved["parameters_after"] / saved["parameters_before"] == pytest.approx(point["parameters"], abs=0.002)


def test_plans_are_compared(api: httpx.Client) -> None:
    one, other = (
        got(api.post("/api/selections", json={"name": name, "neurons": neurons}), 201)["id"]
        for name, neurons in (("a", [[0, 1], [0, 2]]), ("b", [[0, 2], [3, 3], [3, 4]]))
    )
    told = got(api.post("/api/compare", json={"selections": [one, other], "input_texts": TEXTS}))["selections"]
    assert (told[one]["neurons"], told[other]["neurons"]) == (2, 3)
    assert told[one]["shared"] == {other: 1}
    alone = got(api.post("/api/pruning/simulate", json={"neurons": [[0, 1], [0, 2]], "input_texts": TEXTS}))
    assert told[one]["impact_score"] == pytest.approx(alone["impact_score"], rel=1e-4)
    assert got(api.post("/api/compare", json={}), 422)["error"].startswith("There is nothing")
    assert got(api.post("/api/compare", json={"selections": ["nothing"]}), 404)


def test_images_have_no_texts(small: httpx.Client) -> None:
    got(small.post("/api/models/switch", json={"model_name": "digits-vit"}))
    told = got(small.post("/api/pruning/simulate", json={"neurons": [[0, 1]], "continuations": 3}))
    assert told["continuations"] is None
    refused = got(small.post("/api/pruning/simulate", json={"neurons": [[0, 1]], "input_texts": ["a"]}), 422)
    assert "has no tokenizer" in refused["error"]
    assert len(np.frombuffer(small.get("/api/neurons.bin?metric=activity").content, "<f4")) == sum(
        got(small.get("/api/models/current"))["layer_sizes"]
    )
    assert torch.get_num_threads() == 1


def test_neurons_may_be_sent_as_bits(small: httpx.Client) -> None:
    sizes = small.get("/api/models/current").json()["layer_sizes"]
    chosen = np.random.default_rng(0).random((len(sizes), max(sizes))) < 0.3
    pairs = [[layer, int(n)] for layer, size in enumerate(sizes) for n in np.flatnonzero(chosen[layer, :size])]
    bits = [
        base64.b64encode(np.packbits(chosen[layer, :size], bitorder="little").tobytes()).decode()
        for layer, size in enumerate(sizes)
    ]
    one, other = (small.post("/api/pruning/simulate", json={"neurons": given}).json() for given in (pairs, bits))
    assert one["impact_score"] == other["impact_score"]
    assert one["neurons"] == other["neurons"] == len(pairs)
    assert small.post("/api/pruning/simulate", json={"neurons": ["no bits!"]}).status_code == 422
    all_bits = base64.b64encode(b"\xff" * 300_000).decode()  # 2.4 million neurons in 400 kB: refused before it grows
    refused = small.post("/api/pruning/simulate", json={"neurons": [all_bits]})
    assert refused.status_code == 422
    assert "More than" in refused.json()["error"]
    beyond = base64.b64encode(bytes([0] * (max(sizes) // 8 + 1) + [1])).decode()
    assert small.post("/api/pruning/simulate", json={"neurons": [beyond]}).status_code == 422


def test_what_is_meant_for_another_model_is_refused(small: httpx.Client) -> None:
    card = small.get("/api/models/current").json()
    body = {"neurons": [[0, 0]]}
    meant = {"X-Model": card["fingerprint"]}
    assert small.post("/api/pruning/simulate", json=body, headers=meant).status_code == 200
    told = small.post("/api/pruning/simulate", json=body, headers={"X-Model": "another"})
    assert told.status_code == 409
    assert told.headers["X-Model"] == card["fingerprint"]
    assert "digits-vit" in told.json()["error"]
    assert small.get("/api/neurons.bin?metric=score", headers={"X-Model": "another"}).status_code == 409


@pytest.mark.parametrize("name", ["digits-vit", "stdlib-gpt"])
def test_the_latency_is_measured_and_its_shares_are_those_of_the_operations(name: str, request: Any) -> None:
    client = request.getfixturevalue("small" if name == "digits-vit" else "api")
    told = client.get("/api/models/latency").json()
    assert told["latency_ms"] > 0
    loaded = reference.load(name)
    analyzer = PruningImpactAnalyzer(loaded.model, loaded.tokenizer)
    (batch, *_) = batches_of(loaded.model, loaded.tokenizer, sample_inputs(loaded.model, loaded.tokenizer))
    assert told["input_shape"] == list(next(iter((*batch.args, *batch.kwargs.values()))).shape)
    left = left_of("flops", loaded.model, analyzer.neurons, batch)
    for layer in (0, len(analyzer.layers) - 1):
        (group,) = analyzer.layers[layer].groups
        gone = group.size // 2
        assert 1 - told["neuron_shares"][layer] * gone == pytest.approx(left({group.name: gone}), abs=2e-3)


def test_a_search_tells_each_try_as_it_is_judged(small: httpx.Client) -> None:
    asked = {"tolerance": 10.0, "resolution": 0.5}
    job = small.post("/api/pruning/optimize", json=asked, headers={"Prefer": "respond-async"}).json()["id"]
    events = small.get(f"/api/jobs/{job}/events").text  # ends with the job
    told = [
        json.loads(line.removeprefix("data: "))
        for block in events.replace("\r\n", "\n").split("\n\n")
        if "event: partial" in block
        for line in block.splitlines()
        if line.startswith("data: ")
    ]
    result = small.get(f"/api/jobs/{job}/result").json()
    assert told[0]["parameters"] == 1.0  # the dense model
    assert told[0]["metric"] == result["dense"]
    assert len(told) == result["evaluations"]
    tried = {(one["parameters"], one["metric"]) for one in told}
    assert {(point["parameters"], point["metric"]) for point in result["front"]} <= tried
