"""Carrying out a decision: simulate, remember, remove, verify; and put everything back if it is not right."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruner.apply import check, prune_
from pruner.backup import Backup, by_reference
from pruner.captured import capture
from pruner.companions import Companions
from pruner.config import PruningConfig
from pruner.decision import Decision
from pruner.log import logger
from pruner.metrics import count_parameters
from pruner.repair import Repair
from pruner.report_text import difference
from pruner.verification import FailedChecksError, VerificationReport, verify
from tracker.errors import DataError
from tracker.neuron_map import NeuronMap
from tracker.progress import step as long_step

Results = dict[str, Any]


@dataclass(frozen=True)
class Execution:
    """How a decision is to be carried out.

    `data_loader` gives real data to verify with, not only example inputs. `store` writes the pruned model, before it is
    verified, and returns the directory; that it can be loaded from there is then one more check. `repair` are new
    values of weights that stay (see `pruner.repair`).
    """

    config: PruningConfig
    dry_run: bool
    data_loader: Iterable[Any] | None = None
    optimizer: Companions | None = None
    store: Callable[[nn.Module], Path] | None = None
    repair: Repair | None = None


def carry_out(model: nn.Module, neurons: NeuronMap, decision: Decision, how: Execution) -> Results:
    """Remove what was decided from `model`, in place, and say what happened; a dry run changes nothing.

    Returns the results that `PruningEngine` documents.

    Raises:
        PlanError: the pruned model would not run.
        FailedChecksError: a check failed.

    After any error, `KeyboardInterrupt` included, the model and the optimizer are as they were.
    """
    step = logger.info if how.config.logging.verbose else logger.debug
    layers = {name: len(gone) for name, gone in decision.plan.remove.items()}
    removed, before = decision.plan.neurons, sum(decision.limits.current.values())
    parameters = count_parameters(model)

    step("Original model: %d neurons across %d layers", before, len(decision.limits.current))
    step("Pruning candidates identified: %d neurons", len(decision.candidates))
    for candidate in decision.candidates:
        logger.debug("Candidate: neuron %d of %s (%s)", candidate.neuron, candidate.layer, candidate.reason)
    for note in decision.notes:
        logger.debug(note)
    for warning in decision.warnings:
        logger.warning(warning)

    report: VerificationReport | None = None
    parameters_after = parameters
    if removed and how.dry_run:
        parameters_after = _simulate(model, neurons, decision, how)
        logger.info("Dry run: %d neurons would be removed from %d layers", removed, len(layers))
    elif removed:
        if how.config.validation.dry_run_first:
            _simulate(model, neurons, decision, how)
            logger.debug("Dry run: %d neurons can be removed from %d layers", removed, len(layers))
        report = _remove(model, neurons, decision, how)
        parameters_after = count_parameters(model)
        logger.info("Pruning completed: %d neurons removed from %d layers", removed, len(layers))
        if report is not None:
            step("Verification: %s", report)
            if report.measured is not None:
                step("%s", difference(report.measured.to_json()))
    else:
        logger.info("Pruning completed: 0 neurons removed from 0 layers")
    for name, count in layers.items():
        size = decision.limits.current[name]
        logger.debug("Layer %s: %d neurons, %d of them removed", name, size, count)
    step("Final model: %d neurons (%.1f%% reduction)", before - removed, 100 * removed / max(before, 1))
    return {
        "neurons_pruned": removed,
        "neurons_before": before,
        "neurons_after": before - removed,
        "reduction": removed / max(before, 1),
        "layers_affected": len(layers),
        "layers": _by_layer(decision),
        "parameters_before": parameters,
        "parameters_after": parameters_after,
        "dry_run": how.dry_run,
        "strategy": decision.plan.provenance["strategy"],
        "plan": decision.plan.to_json(),
        "candidates": [candidate.to_json() for candidate in decision.candidates],
        "verification": None if report is None else report.to_json(),
        "warnings": list(decision.warnings),
    }


def check_weights(model: nn.Module) -> None:
    """Raise `DataError`, naming the weight, if any weight or buffer holds NaN or Inf."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"The weight '{name}' holds NaN or Inf in {bad} of {tensor.numel()} places.",
                hint="Mend the weights, or load a checkpoint from before they broke.",
            )


def _simulate(model: nn.Module, neurons: NeuronMap, decision: Decision, how: Execution) -> int:
    """The real path, stopped before the commit; returns how many parameters the pruned model would have."""
    proof = how.dry_run and how.config.validation.validate_outputs
    with long_step("Simulating"):
        made = check(model, decision.plan, neurons, optimizer=how.optimizer, proof=proof, repair=how.repair)
        return made.parameters_after


def _remove(model: nn.Module, neurons: NeuronMap, decision: Decision, how: Execution) -> VerificationReport | None:
    verifying = how.config.validation.validate_outputs
    with long_step("Silencing the neurons"):
        reference = None
        if verifying:
            reference = capture(model, decision.plan, neurons, how.data_loader, repair=how.repair)
    backup = Backup(model, how.optimizer, keep=by_reference)
    try:
        # the report has the proof
        prune_(model, decision.plan, neurons, optimizer=how.optimizer, proof=False, repair=how.repair)
        checkpoint = None if how.store is None else how.store(model)
        if reference is None:
            return None
        with long_step("Verifying"):
            report = verify(model, reference, checkpoint=checkpoint)
    except BaseException:
        backup.restore(model)
        raise
    if report.failures:
        backup.restore(model)
        raise FailedChecksError(report, decision.plan)
    return report


def _by_layer(decision: Decision) -> Results:
    scores = {(candidate.layer, candidate.neuron): candidate for candidate in decision.candidates}
    return {
        name: {
            "before": decision.limits.current[name],
            "after": decision.limits.current[name] - len(gone),
            "removed": list(gone),
            "scores": [scores[name, neuron].score for neuron in gone],
            "reasons": [scores[name, neuron].reason for neuron in gone],
        }
        for name, gone in decision.plan.remove.items()
    }
