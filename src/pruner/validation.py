"""Is a pruned model sound? Checked on the two models alone, without a plan; the proof that needs one is `verify`."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from pruner.equivalence import answers, batch_of
from pruner.metrics import count_parameters, example_of
from tracker.admission import unwrapped
from tracker.errors import NeuronScopeError


class PruningValidator:
    """The checks of `validate_pruning`."""

    def validate(self, pruned_model: nn.Module, original_model: nn.Module) -> dict[str, Any]:
        """See `validate_pruning`."""
        return validate_pruning(pruned_model, original_model)


def validate_pruning(pruned_model: nn.Module, original_model: nn.Module) -> dict[str, Any]:
    """Compare a pruned model with its original; both are left as they are.

    Returns:
        `is_valid`: whether every check below passed.
        `structure`: `valid`, `changed` (every tensor that shrank: its shape before and after) and `issues`: tensors
        that are missing, have grown or are empty, and layers whose sizes disagree with their weights.
        `forward_pass`: `valid`, `outputs` (the shape of every output by name) and `issues`: the pruned model fails,
        answers with NaN or Inf, or with other shapes than the original.
        `parameter_counts`: `valid`, `original`, `pruned`, `removed`, `reduction` (share).
        `warnings`: what is no mistake but may surprise. `errors`: all issues, in words.
    """
    pruned, original = unwrapped(pruned_model), unwrapped(original_model)
    structure = _structure(pruned, original)
    forward_pass = _forward_pass(pruned, original)
    before, after = count_parameters(original), count_parameters(pruned)
    warnings = [] if structure["changed"] else ["Both models have the same shapes: nothing was removed."]
    if pruned.training != original.training:
        warnings.append("One model is in training mode and the other is not.")
    errors = [*structure["issues"], *forward_pass["issues"]]
    if after > before:
        errors.append(f"The pruned model has {after} parameters, the original {before}.")
    return {
        "is_valid": not errors,
        "structure": structure,
        "forward_pass": forward_pass,
        "parameter_counts": {
            "valid": after <= before,
            "original": before,
            "pruned": after,
            "removed": before - after,
            "reduction": 1 - after / before if before else 0.0,
        },
        "warnings": warnings,
        "errors": errors,
    }


def _structure(pruned: nn.Module, original: nn.Module) -> dict[str, Any]:
    now, then = _shapes(pruned), _shapes(original)
    issues = [f"'{name}' is in only one of the models." for name in sorted(now.keys() ^ then.keys())]
    changed = {
        name: {"original": then[name], "pruned": now[name]} for name in then if now.get(name, then[name]) != then[name]
    }
    for name, shapes in changed.items():
        before, after = shapes["original"], shapes["pruned"]
        if len(before) != len(after) or any(new > old for old, new in zip(before, after, strict=True)):
            issues.append(f"'{name}' has the shape {after}, which does not fit into {before}.")
        if 0 in after and 0 not in before:
            issues.append(f"'{name}' is empty: its shape is {after}.")
    for name, module in pruned.named_modules():
        for attribute, size in _sizes_by_weight(module):
            shown = getattr(module, attribute)
            if shown != size:
                issues.append(f"'{name}' says {attribute} = {shown}; its weight says {size}.")
    return {"valid": not issues, "changed": changed, "issues": issues}


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in chain(model.named_parameters(), model.named_buffers())}


def _sizes_by_weight(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What PyTorch's own layers should show, by the shape of their weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return
    shape, groups = tuple(weight.shape), getattr(module, "groups", 1)
    match module:
        case nn.Linear():
            yield from (("out_features", shape[0]), ("in_features", shape[1]))
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            yield from (("in_channels", shape[0]), ("out_channels", shape[1] * groups))
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            yield from (("out_channels", shape[0]), ("in_channels", shape[1] * groups))
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            yield "num_features", shape[0]
        case nn.GroupNorm():
            yield "num_channels", shape[0]
        case nn.LayerNorm():
            yield "normalized_shape", shape
        case nn.Embedding():
            yield from (("num_embeddings", shape[0]), ("embedding_dim", shape[1]))


def _forward_pass(pruned: nn.Module, original: nn.Module) -> dict[str, Any]:
    try:
        call = example_of(pruned, original)
        expected = answers(original, batch_of(call, original))
        found = answers(pruned, batch_of(call, pruned))
    except NeuronScopeError as error:
        return {"valid": False, "outputs": {}, "issues": [str(error)]}
    except Exception as error:  # noqa: BLE001 - a broken model may fail in any way, and that is what is asked here
        return {"valid": False, "outputs": {}, "issues": [f"The forward pass fails: {type(error).__name__}: {error}"]}
    issues = []
    for name, before in expected.items():
        if name not in found or found[name].shape != before.shape:
            shape = list(found[name].shape) if name in found else "missing"
            issues.append(
                f"The {name} has the shape {list(before.shape)} in the original and is {shape} in the pruned model."
            )
        elif not torch.isfinite(found[name]).all():
            issues.append(f"The {name} holds NaN or Inf.")
    return {
        "valid": not issues,
        "outputs": {name: list(tensor.shape) for name, tensor in found.items()},
        "issues": issues,
    }
