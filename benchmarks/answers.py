"""What looking at neurons costs, at GPT-2 small's size and on the trained models; beside Captum where it can do it.

`python benchmarks/answers.py`, about ten minutes. Needs the extras "transformers" and "serve", and captum.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, write

from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.importance import estimated, exact_impacts, importance_of
from neuronscope.inputs import batches_of
from neuronscope.movement import Scale
from neuronscope.stacked import absences, single_rows
from neuronscope.weights import WeightAnalyzer
from pruner.compensation.distance import answer
from tracker import discover
from tracker.batches import evaluating, forward
from tracker.extras import require

RUNS = 5
WORDS = 12


class Numbers:
    """A tokenizer of GPT-2 small's vocabulary: as many tokens as words, whatever they are."""

    pad_token = eos_token = "."  # noqa: S105

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
        ids = torch.tensor([[hash((text, place)) % 50257 for place in range(WORDS)] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def main() -> None:
    """Measure all parts, or those that are named (the other results stay), and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="only these")
    chosen = parser.parse_args().parts or list(PARTS)
    known = RESULTS / "answers.json"
    data: dict[str, Any] = json.loads(known.read_text()) if known.exists() and len(chosen) < len(PARTS) else {}
    data.pop("machine", None)

    def add(what: str, found: str, target: str, **numbers: Any) -> None:
        data[what] = {"measured": found, "target": target, **numbers}
        print(f"{what}: {found} (target {target})", flush=True)

    model: nn.Module | None = None
    for part in chosen:
        if part in ("estimates", "server"):
            PARTS[part](None, add)
            continue
        if model is None:
            transformers = require("transformers", "transformers")
            torch.manual_seed(0)
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
            discover(model)
        PARTS[part](model, add)
    rows = [[what, one["measured"], one["target"]] for what, one in data.items()]
    write("answers", ["what", "measured", "target"], rows, data)


def _weights(model: nn.Module, add: Callable[..., None]) -> None:
    analyzer = WeightAnalyzer(model)
    seconds = _median(analyzer.get_sparsity_analysis)
    add("weight analysis, 124 M parameters", f"{seconds:.2f} s", "1 s", seconds=seconds)
    seconds = _median(analyzer.identify_pruning_candidates)
    add("candidates, all 36,864 neurons", f"{seconds:.2f} s", "0.5 s", seconds=seconds)


def _sets(model: nn.Module, add: Callable[..., None]) -> None:
    analyzer = PruningImpactAnalyzer(model, Numbers())
    batch = batches_of(model, Numbers(), "a text")[0]
    chosen = [(layer, neuron) for layer in range(12) for neuron in range(50)]
    ratios = []
    for number in range(RUNS + 1):
        with evaluating(model):
            plain = _seconds(lambda: forward(model, batch))
        ours = _seconds(lambda n=number: analyzer.simulate(chosen, f"text {n}"))
        ratios.append(ours / plain)
    ratio = median(ratios[1:])
    add("impact of a first set, in forward passes", f"{ratio:.2f}", "2", ratios=ratios)
    ratios = []
    for number in range(RUNS + 1):
        with evaluating(model):
            plain = _seconds(lambda: forward(model, batch))
        ratios.append(_seconds(lambda n=number: analyzer.simulate(chosen[n:], "a text")) / plain)
    ratio = median(ratios[1:])
    add("impact of the next sets on the same text", f"{ratio:.2f}", "2", ratios=ratios)
    candidates = [{"layer_index": n % 12, "neuron_index": 31 * n} for n in range(20)]
    seconds = [
        _seconds(lambda n=n: analyzer.batch_pruning_analysis([f"one {n}", f"two {n}"], candidates)) for n in range(3)
    ]
    add("batch of 20 candidates over 2 texts", f"{median(seconds):.2f} s", "5 s", seconds=seconds)
    batches = batches_of(model, Numbers(), ["one", "two", "three"])
    layers = analyzer.layers.all
    ratios = []
    with evaluating(model):
        for _ in range(RUNS + 1):

            def trained() -> None:
                with torch.enable_grad():
                    said = answer(forward(model, batches[0]), batches[0]).values
                    torch.nn.functional.cross_entropy(said, said.detach().argmax(-1)).backward()
                model.zero_grad()

            plain = _seconds(trained)
            ours = _seconds(lambda: estimated(model, layers, batches, "second-order", 1))
            ratios.append(ours / plain)
    ratio = median(ratios[1:])
    add("a probe for all neurons, in forward + backward", f"{ratio:.2f}", "1.2", ratios=ratios)


def _exact(model: nn.Module, add: Callable[..., None]) -> None:
    """All 3072 neurons of the middle layer on 3 texts, over the time of the same products at the measured rate."""
    analyzer = PruningImpactAnalyzer(model, Numbers())
    layer = analyzer.layers[6]
    with evaluating(model):
        rows = [one for batch in batches_of(model, Numbers(), ["a", "b", "c"]) for one in single_rows(batch)]
        dense = [answer(forward(model, row), row) for row in rows]
        scale = Scale(dense, [None] * 3)
        start = time.perf_counter()
        found = exact_impacts(model, layer, rows, scale, range(layer.size))
        seconds = time.perf_counter() - start
        single = 0.0
        for neuron in (0, 1000, 3071):
            alone = analyzer.simulate([(6, neuron)], ["a", "b", "c"]).impact_score
            single = max(single, abs(alone - found[neuron]))
    places = 3 * WORDS * layer.size
    width, vocabulary = 768, 50257
    # From the layer's second product on: 768 × 3072, five whole blocks, and the head.
    products = places * (width * 4 * width + 5 * 12 * width * width + width * vocabulary)
    floor = 2 * products / _rate()
    add(
        "exact, all 3072 neurons of a layer on 3 texts, over the same products",
        f"{seconds / floor:.2f} ({seconds:.0f} s)",
        "2",
        seconds=seconds,
        floor=floor,
    )
    add("largest difference from one forward pass each", f"{single:.1e}", "1e-5", difference=single)


def _captum(model: nn.Module, add: Callable[..., None]) -> None:
    """Ablation of a layer's neurons on one text: ours, and Captum's at its best `perturbations_per_eval`."""
    captum = require("captum.attr", "captum")
    analyzer = PruningImpactAnalyzer(model, Numbers())
    layer = analyzer.layers[6]
    count = 256
    ids = Numbers()(["a"])["input_ids"]
    with evaluating(model):
        (row,) = single_rows(batches_of(model, Numbers(), "a")[0])

        def ours() -> None:
            for _ in absences(model, layer.places[:count], [row]):
                pass

        def logits(given: Tensor) -> Tensor:
            return model(input_ids=given).logits.flatten(1).square().sum(1)

        module = model.get_submodule("transformer.h.6.mlp.act")
        ablation = captum.LayerFeatureAblation(logits, module)
        mask = torch.arange(3072).clamp(max=count).expand(1, WORDS, 3072)  # the last feature stands for all others
        best = min(
            (_seconds(lambda k=k: ablation.attribute(ids, layer_mask=mask, perturbations_per_eval=k)), k)
            for k in (1, 4, 16, 32, 64)
        )
        ratios = []
        for _ in range(3):
            theirs = _seconds(lambda: ablation.attribute(ids, layer_mask=mask, perturbations_per_eval=best[1]))
            ratios.append(theirs / (count + 1) * count / _seconds(ours))
    add(
        "Captum's ablation over ours, 256 neurons",
        f"{median(ratios):.1f} ×",
        "5 ×",
        ratios=ratios,
        perturbations_per_eval=best[1],
    )


def _estimates(_: object, add: Callable[..., None]) -> None:
    for name in ("stdlib-gpt", "stdlib-llama"):
        _estimated(name, add)


def _estimated(name: str, add: Callable[..., None]) -> None:
    """The rank correlation of each estimate with the exact value, over a sample of 128 neurons of every layer."""
    loaded = reference.load(name)
    ids = reference.batches(name, "held-out", count=1, batch_size=16, length=32)[0]["input_ids"]
    analyzer = PruningImpactAnalyzer(loaded.model, loaded.tokenizer)
    found: dict[str, list[float]] = {"second order": [], "first order": [], "activity": []}
    with evaluating(loaded.model):
        batches = batches_of(loaded.model, None, {"input_ids": ids})  # one batch: 16 passes in all
        rows = [row for batch in batches for row in single_rows(batch)]
        dense = [answer(forward(loaded.model, row), row) for row in rows]
        scale = Scale(dense, [None] * len(dense))
        layers = analyzer.layers.all
        second = estimated(loaded.model, layers, batches, "second-order", 16)
        first = estimated(loaded.model, layers, batches, "first-order", 1)
        if second is None or first is None:
            raise SystemExit(f"No gradient reaches the neurons of {name}.")
        activity = importance_of(loaded.model, layers, batches, method="first-order", sample=1)
        for layer in layers:
            chosen = np.random.default_rng(layer.index).permutation(layer.size)[:128]
            exact = exact_impacts(loaded.model, layer, rows, scale, chosen.tolist())
            acting = np.array([one.activation_magnitude for one in activity[layer.index]])
            values = (second[layer.index], first[layer.index], acting)
            for kind, own in zip(found.values(), values, strict=True):
                kind.append(float(spearmanr(exact, own[chosen]).statistic))
    for kind, own in found.items():
        target = "0.97 in every layer" if kind == "second order" else ""
        shown = f"{min(own):.3f} to {max(own):.3f}"
        add(f"{name}: {kind} against exact, Spearman by layer", shown, target, correlations=own)


def _server(_: object, add: Callable[..., None]) -> None:
    """50 clients that read while a job runs."""
    httpx = require("httpx", "dev")
    from tests.neuronscope.server.running import running

    paths = ("/api/pruning/weight-analysis", "/api/models", "/api/neurons/3/5", "/api/neurons.bin?metric=magnitude")
    taken: list[float] = []

    async def client(address: str, number: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=30, verify=False) as session:
            await asyncio.sleep(2 + number / 50)  # when all are made
            for turn in range(10):
                start = time.perf_counter()
                await session.get(paths[(number + turn) % len(paths)])
                taken.append(time.perf_counter() - start)
                await asyncio.sleep(1)

    async def clients(address: str) -> None:
        await asyncio.gather(*(client(address, number) for number in range(50)))

    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as api:
        api.get("/api/models/current")
        asked = {"json": {"method": "exact"}, "headers": {"Prefer": "respond-async"}}
        job = api.post("/api/pruning/neuron-importance", **asked).json()["id"]
        asyncio.run(clients(str(api.base_url)))
        running_still = api.get(f"/api/jobs/{job}").json()["state"] == "running"
        api.delete(f"/api/jobs/{job}")
        events = api.get(f"/api/jobs/{job}/events").text.count("event: progress")
    if not running_still:
        raise SystemExit("The job was over before the clients were.")
    p95 = 1000 * float(np.quantile(taken, 0.95))
    add("50 clients reading while a job runs, p95", f"{p95:.0f} ms", "100 ms", milliseconds=p95, events=events)


def _rate() -> float:
    """Floating-point operations a second of this machine's matrix product, at the size of the layers."""
    a, b = torch.randn(768, 768), torch.randn(768, 3072)
    return 2 * 768 * 768 * 3072 / min(_seconds(lambda: a @ b) for _ in range(20))


def _median(run: Callable[[], object]) -> float:
    run()
    return median(_seconds(run) for _ in range(RUNS))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


PARTS: dict[str, Callable[[Any, Callable[..., None]], None]] = {
    "weights": _weights,
    "sets": _sets,
    "exact": _exact,
    "captum": _captum,
    "estimates": _estimates,
    "server": _server,
}

if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
