"""Is a pruned model right? The checks of the guide, and the proof that slicing is the same function as zeroing.

`capture` looks at the dense model before anything is removed and remembers, for some real batches, what it answers with
the neurons zeroed. `verify` then holds the pruned model against that. With both models at hand, `verify` does both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from pruner.captured import BATCHES, PROOF, Reference, captured_for, inexact_in
from pruner.checkpoint import load_pruned
from pruner.difference import Measured, accuracy, between
from pruner.equivalence import (
    Expected,
    answers,
    coarsest_eps,
    compare,
    difference,
    rounding,
)
from pruner.plan import PruningPlan
from pruner.skeleton import named_tensors
from tracker import trial
from tracker.admission import unwrapped
from tracker.errors import NeuronScopeError, VerificationError
from tracker.neuron_map import NeuronMap, Site
from tracker.sizes import read_path


@dataclass(frozen=True)
class Check:
    """One check: whether it passed, what it found in words, and the numbers it compared."""

    name: str
    passed: bool
    detail: str
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class VerificationReport:
    """The checks made, what could not be checked and why, and what layers that are not exact changed, if any did."""

    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = ()
    measured: Measured | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """How many checks passed, of how many, and whether all did."""
        passed = sum(check.passed for check in self.checks)
        return {
            "passed": passed,
            "total": len(self.checks),
            "overall_success": passed == len(self.checks) and passed > 0,
        }

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def __str__(self) -> str:
        return f"{self.summary['passed']}/{self.summary['total']} tests passed"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {
            "checks": [
                {"name": check.name, "passed": check.passed, "detail": check.detail, "measured": dict(check.measured)}
                for check in self.checks
            ],
            "summary": self.summary,
            "not_checked": list(self.not_checked),
            "measured": None if self.measured is None else self.measured.to_json(),
        }


class FailedChecksError(VerificationError):
    """A pruned model that did not pass: `report` has every check, `plan` what was tried."""

    def __init__(self, report: VerificationReport, plan: PruningPlan) -> None:
        failed = report.failures[0]
        super().__init__(
            f"{report}; {failed.name}: {failed.detail}",
            hint="The model was restored. Leave the layer out of the plan, and please report the model.",
        )
        self.report = report
        self.plan = plan


def verify(
    pruned_model: nn.Module,
    original_model: nn.Module | Reference,
    plan: PruningPlan | None = None,
    data_loader: Iterable[Any] | None = None,
    *,
    neurons: NeuronMap | None = None,
    checkpoint: str | PathLike[str] | None = None,
    batches: int | None = BATCHES,
) -> VerificationReport:
    """Check a pruned model against the dense one it came from.

    The checks: structure (every tensor and integer is what the plan makes of the dense model's), forward pass (finite
    answers of the same shapes), neuron counts, parameter counts, sliced equals masked (relative to the largest value,
    within rounding as measured in this model; see `pruner.equivalence`), and, with `checkpoint`, that the model loaded
    from there answers the same, bit for bit. What layers that are not exact change is only measured; the others are
    proven in the model that has lost these already.

    Where the pruned model's record names tensors that were given new values (a repair), these are taken from it as they
    are: what is proven then is that it computes what the dense model with these values and the neurons zeroed does.

    A check that fails is in the report; only bad arguments are errors. Both models are left as they are.

    Args:
        pruned_model: the model after the pruning.
        original_model: the dense model, or what `capture` remembered of it (then the arguments of `capture` are not
            needed again).
        plan, data_loader, neurons, batches: as for `capture`.
        checkpoint: a directory that `save_pruned` wrote the pruned model to.
    """
    pruned = unwrapped(pruned_model)
    if isinstance(original_model, Reference):
        reference = original_model
    else:
        reference = captured_for(pruned, original_model, plan, neurons, data_loader, batches)
    found = reference.neurons
    checks = [
        _checked("structure", lambda: _structure(pruned, reference)),
        _checked("forward pass", lambda: _forward_pass(pruned, reference)),
        *([] if found is None else [_checked("neuron counts", lambda: _neuron_counts(pruned, reference, found))]),
        _checked("parameter counts", lambda: _parameter_counts(pruned, reference)),
    ]
    masked = reference.masked
    if masked is not None:
        checks.append(_checked(PROOF, lambda: _sliced_equals_masked(pruned, masked)))
    if checkpoint is not None:
        checks.append(_checked("save and load", lambda: _save_and_load(pruned, reference, checkpoint)))
    runs = all(check.passed for check in checks[:2])
    return VerificationReport(tuple(checks), reference.not_checked, _measured(pruned, reference) if runs else None)


_Outcome = tuple[bool, str, dict[str, Any]]


def _checked(name: str, outcome: Callable[[], _Outcome]) -> Check:
    """One check; a pruned model may fail in any way its code can, and that is a finding, not an error."""
    try:
        passed, detail, measured = outcome()
    except NeuronScopeError as error:
        passed, detail, measured = False, str(error), {}
    except Exception as error:  # noqa: BLE001
        first_line = next(iter(str(error).splitlines()), "")[:200]
        passed, detail, measured = False, f"It fails with {type(error).__name__}: {first_line}", {}
    return Check(name, passed, detail, measured)


def _measured(pruned: nn.Module, reference: Reference) -> Measured | None:
    layers, dense, batches = inexact_in(reference.neurons, reference.removed), reference.dense, reference.batches
    if not layers:
        return None
    after = [answers(pruned, batch) for batch in batches]
    return Measured(
        layers=layers,
        batches=len(batches),
        total=between(dense, after, batches),
        exact_alone=None if reference.zeroed is None else between(dense, reference.zeroed, batches),
        accuracy_before=accuracy(dense, batches),
        accuracy_after=accuracy(after, batches),
    )


def _structure(pruned: nn.Module, reference: Reference) -> _Outcome:
    expected, found = _expected_shapes(reference), _shapes(pruned)
    planned = reference.neurons is not None
    wrong = [
        f"'{name}' is {found.get(name, 'missing')} where {expected.get(name, 'nothing')} was expected"
        for name in sorted(expected.keys() | found.keys())
        if not (found.get(name) == expected.get(name) if planned else _within(found.get(name), expected.get(name)))
    ]
    if reference.neurons is not None:
        for module, path, _, new in trial.integers_after(reference.skeleton, reference.neurons, reference.removed):
            now = read_path(pruned.get_submodule(module), path)
            if now != new:
                where = ".".join([module, *map(str, path)]).lstrip(".")
                wrong.append(f"'{where}' is {now} where {new} was expected")
    detail = f"All {len(found)} tensors have the shapes that the plan gives."
    return not wrong, _sentence(wrong) or detail, {"tensors": len(found), "wrong": len(wrong)}


def _forward_pass(pruned: nn.Module, reference: Reference) -> _Outcome:
    wrong: list[str] = []
    for index, (batch, dense) in enumerate(zip(reference.batches, reference.dense, strict=True)):
        found = answers(pruned, batch)
        for name in sorted(dense.keys() | found.keys()):
            now, then = found.get(name), dense.get(name)
            if now is None or then is None or now.shape != then.shape:
                shapes = _shape(now), _shape(then)
                wrong.append(f"batch {index}: {name} is {shapes[0]} where the dense model gives {shapes[1]}")
            elif not torch.isfinite(now).all():
                wrong.append(f"batch {index}: {name} holds NaN or Inf")
    detail = f"{len(reference.batches)} batches run, with finite answers of the dense model's shapes."
    return not wrong, _sentence(wrong) or detail, {"batches": len(reference.batches)}


def _neuron_counts(pruned: nn.Module, reference: Reference, neurons: NeuronMap) -> _Outcome:
    """Neurons by layer, counted in the tensors: what a dimension lost, against what the plan takes from it."""
    before, after = _shapes(reference.skeleton), _shapes(pruned)
    per_neuron: dict[Site, dict[str, int]] = {}
    for group in neurons:
        for site, positions in group.members.items():
            per_neuron.setdefault(site, {})[group.name] = positions.shape[1]
    sizes = {group.name: group.size for group in neurons}
    found: dict[str, int] = {}
    wrong: dict[str, str] = {}
    for site, layers in per_neuron.items():
        expected = sum(len(reference.removed.get(name, ())) * times for name, times in layers.items())
        lost = before[site.parameter][site.dim] - after[site.parameter][site.dim]
        first, times = next(iter(layers.items()))
        if len(layers) == 1:
            found[first] = sizes[first] - lost // times
        if lost != expected:
            said = f"'{site.parameter}' lost {lost} of dimension {site.dim}, not {expected}"
            wrong.setdefault(first, said)
    measured = {
        "before": neurons.neurons,
        "expected": neurons.neurons - sum(map(len, reference.removed.values())),
        "found": sum(found.get(group.name, group.size) for group in neurons),
        "layers_affected": len(reference.removed),
    }
    detail = f"{measured['before'] - measured['found']} of {measured['before']} neurons are gone, as planned."
    return not wrong, _sentence(list(wrong.values())) or detail, measured


def _parameter_counts(pruned: nn.Module, reference: Reference) -> _Outcome:
    shapes = _expected_shapes(reference)
    before = sum(parameter.numel() for parameter in reference.skeleton.parameters())
    expected = sum(math.prod(shapes[name]) for name, _ in reference.skeleton.named_parameters())
    found = sum(parameter.numel() for parameter in pruned.parameters())
    measured = {"before": before, "expected": expected, "found": found}
    if reference.neurons is None:
        return found <= before, f"{found:,} of {before:,} parameters are left.", measured
    if found != expected:
        return False, f"{found:,} parameters are left where {expected:,} were expected.", measured
    return True, f"{before - found:,} of {before:,} parameters are gone, as planned.", measured


def _sliced_equals_masked(pruned: nn.Module, masked: tuple[Expected, ...]) -> _Outcome:
    worst = compare(pruned, masked)
    measured = {"error": worst.error, "tolerance": worst.tolerance, "batches": len(masked)}
    verdict = "agrees" if worst.holds else "does not agree"
    detail = f"The sliced model {verdict} with the dense one with the same neurons zeroed."
    if not worst.holds:
        detail += f" {worst.output} differs by {worst.error:.1e}, where rounding allows {worst.tolerance:.1e}."
    return worst.holds, detail, measured


def _save_and_load(pruned: nn.Module, reference: Reference, checkpoint: str | PathLike[str]) -> _Outcome:
    """Every value the same bit for bit; the answers only up to rounding, for kernels may differ with memory layout."""
    device = next(pruned.parameters()).device
    loaded = load_pruned(checkpoint, reference.skeleton).to(device)
    saved, again = dict(named_tensors(pruned)), dict(named_tensors(loaded))
    wrong = [f"'{name}' has other values" for name, tensor in saved.items() if not _identical(tensor, again.get(name))]
    error = 0.0
    for batch in reference.batches:
        here, there = answers(pruned, batch), answers(loaded, batch)
        error = max(error, *(difference(there[name], here[name]) if name in there else math.inf for name in here))
    tolerance = rounding(coarsest_eps(pruned.parameters()))
    if error > tolerance:
        wrong.append("the loaded model gives other answers")
    detail = "The model loaded from its checkpoint has the same tensors and gives the same answers."
    return not wrong, _sentence(wrong) or detail, {"error": error, "tolerance": tolerance}


def _identical(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _expected_shapes(reference: Reference) -> dict[str, tuple[int, ...]]:
    """What the plan makes of the dense model's shapes."""
    shapes = _shapes(reference.skeleton)
    if reference.neurons is not None:
        shapes.update(trial.sliced_shapes(reference.skeleton, reference.neurons, reference.removed))
    return shapes


def _within(found: tuple[int, ...] | None, dense: tuple[int, ...] | None) -> bool:
    if found is None or dense is None or len(found) != len(dense):
        return False
    return all(new <= old for new, old in zip(found, dense, strict=True))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))


def _sentence(wrong: list[str]) -> str:
    return "" if not wrong else f"{'; '.join(wrong[:3])}{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}."
