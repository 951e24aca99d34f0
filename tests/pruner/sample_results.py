"""Results of imagined runs, for the tests of the report."""

import random
from collections.abc import Sequence
from typing import Any

from pruner.results import Outcome, PrunedLayer, TrackedLayer, WorkflowResults

CNN = (("stem", 16), ("block1.conv", 32), ("block2.conv", 32), ("fc1", 64))
CHECKS = ("structure", "forward pass", "neuron counts", "parameter counts", "sliced equals masked", "save and load")
WHY = ("dead", "inactive", "redundant", "low score", "low score")


def sample_results(
    layers: Sequence[tuple[str, int]] = CNN,
    *,
    model_name: str = "DigitsCNN",
    share: float = 0.25,
    outcome: Outcome = "pruned",
    history: int = 4,
) -> WorkflowResults:
    """A run over `layers`, (name, size) each, that took out about `share` of their neurons; the same every time."""
    chance = random.Random(7)
    tracked: dict[str, TrackedLayer] = {}
    pruned: dict[str, PrunedLayer] = {}
    recommended: list[dict[str, Any]] = []
    for place, (name, size) in enumerate(layers):
        firing = [max(0.0, min(1.0, chance.gauss(0.4, 0.3))) for _ in range(size)]
        tracked[name] = {
            "size": size,
            "kind": ("channel", "mlp", "attention")[place % 3],
            "exact": place % 5 != 4,
            "note": "" if place % 5 != 4 else "LayerNorm normalises over these channels",
            "firing_frequency": firing,
        }
        removed = sorted(chance.sample(range(size), min(size - 1, round(size * share * chance.uniform(0.4, 1.6)))))
        if removed and share:
            pruned[name] = {
                "before": size,
                "after": size - len(removed),
                "removed": removed,
                "scores": [round(chance.uniform(0, 0.3), 4) for _ in removed],
                "reasons": [chance.choice(WHY) for _ in removed],
            }
            for neuron, why in zip(removed, pruned[name]["reasons"], strict=True):
                if why != "low score":
                    evidence = {"firing_frequency": firing[neuron], "maximum": 1e-4, "mean": 0.25, "variance": 0.01}
                    if why == "redundant":
                        evidence |= {"correlation": 0.97, "same_as": 1.0}
                    recommended.append({"layer": name, "neuron": neuron, "reason": why, "evidence": evidence})
    plan = {name: layer["removed"] for name, layer in pruned.items()}
    if outcome == "restored":
        pruned = {}
    before, gone = sum(size for _, size in layers), sum(len(layer["removed"]) for layer in pruned.values())
    passed = 5 if outcome == "restored" else 6
    changed = outcome == "pruned"
    kept = 1 - gone / before
    return {
        "run": {
            "name": "DigitsCNN_20250912-101523",
            "model_name": model_name,
            "model": "SmallResNet",
            "base": None,
            "started": "2025-09-12T10:15:23+02:00",
            "seconds": {"track": 0.81, "recommend": 0.02, "prune": 0.35, "verify": 0.61, "measure": 2.4},
            "outcome": outcome,
        },
        "tracking_results": {
            "neurons": before,
            "batches": 12,
            "layers": tracked,
            "frozen": [
                {"name": "fc2", "size": 10, "reason": "model output"},
                {"name": "conv_in", "size": 1, "reason": "model input"},
            ],
            "operators_without_rule": {"aten.fft_rfft": 2} if len(layers) > 9 else {},
            "history": [
                {"epoch": epoch, "loss": 1.9 * 0.5**epoch + 0.05, "accuracy": 0.98 - 0.4 * 0.45**epoch}
                for epoch in range(1, history + 1)
            ],
        },
        "recommendations": {
            "prune": recommended,
            "merge": [{"layer": layers[-1][0], "neurons": [0, 2], "correlation": 0.9912}],
            "expand": [
                {
                    "layer": layers[-1][0],
                    "reason": "saturated",
                    "evidence": {"median_saturation": 0.95},
                    "suggested": 80,
                }
            ],
        },
        "pruning_results": {
            "neurons_pruned": gone,
            "neurons_before": before,
            "neurons_after": before - gone,
            "reduction": gone / before,
            "layers_affected": len(pruned),
            "layers": pruned,
            "parameters_before": 46_234,
            "parameters_after": round(46_234 * kept**2),
            "dry_run": outcome == "dry run",
            "strategy": "magnitude",
            "plan": {"version": 1, "remove": plan},
            "candidates": [],
            "verification": None,
            "warnings": [],
        },
        "verification_results": {
            "checks": []
            if outcome in ("dry run", "nothing to remove")
            else [
                {
                    "name": check,
                    "passed": place < passed,
                    "detail": "Every tensor has the shape that the plan gives it."
                    if place != 4
                    else "256 samples through both models.",
                    "measured": {"largest_relative_error": 3.1e-7, "tolerance": 1e-4} if place == 4 else {},
                }
                for place, check in enumerate(CHECKS)
            ],
            "summary": {
                "passed": passed if changed or outcome == "restored" else 0,
                "total": 6 if changed or outcome == "restored" else 0,
                "overall_success": changed,
            },
            "not_checked": [],
            "measured": None,
        },
        "metrics": {
            "before": {
                "neurons": before,
                "parameters": 46_234,
                "bytes": 188_960,
                "flops": 5_211_136,
                "latency_ms": 1.31,
                "accuracy": 0.978,
                "quality": {},
            },
            "after": {
                "neurons": before - gone,
                "parameters": round(46_234 * kept**2),
                "bytes": round(188_960 * kept**2),
                "flops": round(5_211_136 * kept**2),
                "latency_ms": 1.01,
                "accuracy": 0.976,
                "quality": {},
            }
            if changed
            else None,
            "custom": {},
        },
        "environment": {
            "versions": {"neuronscope": "0.1.0", "python": "3.11.2", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
            "platform": "Linux-6.1-x86_64",
            "processor": "AMD EPYC 9B14",
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
            "seed": 0,
            "batch": ["float32[128, 1, 8, 8]"],
            "config": {
                "thresholds": {"firing_frequency_threshold": 0.01, "max_sparsity_per_layer": 0.9},
                "strategy": {"default_strategy": "magnitude", "target_sparsity": 0.3},
            },
        },
        "report": {},
        "outputs": {
            "recommendations": "outputs/logs/DigitsCNN_20250912-101523_recommendations.json",
            "pruned_model": "outputs/pruned_models/DigitsCNN_20250912-101523_pruned",
            "verification": "outputs/verification/DigitsCNN_20250912-101523_verification.json",
        },
    }
