"""The proof: a sliced model says what the dense one says with the same neurons zeroed.

Two ways to compute one number differ by rounding, and a deep model carries that further. The tolerance therefore has
two parts: a floor from the arithmetic, eps ** 0.75 (float64 2e-12, float32 6e-6, bfloat16 3e-2), and a multiple of what
rounding was *measured* to do in this very model: the masked model is run once more with everything the masked layers'
consumers read moved by half a unit in the last place, as rounding may, or by as much more as summing in another order
was measured to do on this very device (a GPU adds long sums one term after the other; a CPU hardly does). It never
exceeds a tenth: a comparison that lets more pass proves nothing, not even in a model whose outputs are mostly rounding
(deep bfloat16 networks with hard choices in them, such as expert routing).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_leaves, tree_leaves_with_path, tree_map_only

from pruner.masking import NeverReadError, maskable, silenced
from tracker.batches import Batch, evaluating, forward
from tracker.errors import DataError
from tracker.example_inputs import Call
from tracker.neuron_map import NeuronMap

NOISE_FACTOR = 4.0
WIDEST = 0.1
_MULTIPLIED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST = 2**16


@dataclass(frozen=True)
class Expected:
    """What the masked model answered to one batch: every floating output by name, and its relative tolerance."""

    batch: Batch
    outputs: Mapping[str, Tensor]
    tolerances: Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """The output in which two models differ most, measured against its tolerance.

    `error` is max|a - b| / max|b|, and infinite where the outputs have different shapes or one is NaN.
    """

    output: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.error <= self.tolerance


def expect_all(
    model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor], batches: Iterable[Batch]
) -> tuple[Expected, ...]:
    """`expect` for several batches; what reads the neurons has to run on one of them at least."""
    unread: list[set[str]] = []
    found = []
    for batch in batches:
        unread.append(set())
        found.append(expect(model, neurons, removed, batch, unread=unread[-1]))
    never = set.intersection(*unread) if unread else set()
    if never:
        raise NeverReadError(never)
    return tuple(found)


def expect(
    model: nn.Module,
    neurons: NeuronMap,
    removed: Mapping[str, Tensor],
    batch: Batch,
    *,
    unread: set[str] | None = None,
) -> Expected:
    """Run the dense model with the neurons in `removed` zeroed, and measure how far rounding carries in it.

    What reads them and did not run is added to `unread`.

    Raises:
        DataError: an output holds NaN or Inf, or the model returns no floating-point tensor at all.
        VerificationError: a masked neuron was never read, and no `unread` is given.
    """
    with silenced(model, neurons, removed, unread=unread):
        outputs = answers(model, batch)
    _check_finite(model, outputs)
    eps = coarsest_eps(chain(model.parameters(), outputs.values()))
    jitter = eps / 2 * _reordering(neurons, removed, next(model.parameters()))
    with silenced(model, neurons, removed, jitter=jitter, unread=unread):
        moved = answers(model, batch)
    noise = {name: difference(moved[name], output) for name, output in outputs.items()}
    tolerances = {name: min(max(rounding(eps), NOISE_FACTOR * noise[name]), WIDEST) for name in outputs}
    return Expected(batch, outputs, tolerances)


def _reordering(neurons: NeuronMap, removed: Mapping[str, Tensor], like: Tensor) -> float:
    """What `reordered` says of the longest sum over neurons that go; at least 1."""
    terms = max((read.positions.size for name in removed for read in neurons[name].reads), default=1)
    if terms < 2 or like.is_meta or like.dtype not in _MULTIPLIED:
        return 1.0
    return max(1.0, reordered(like.device, like.dtype, min(1 << (terms - 1).bit_length(), _LONGEST)))


@cache
def reordered(device: torch.device, dtype: torch.dtype, terms: int) -> float:
    """How far sums of so many random terms move when they are summed in another order, over how far they move when each
    term is moved by half a unit in the last place; measured on this device.
    """
    random = torch.Generator().manual_seed(0)
    x, w = (torch.randn(64, terms, generator=random).to(device, dtype) for _ in range(2))
    order = torch.randperm(terms, generator=random).to(device)
    signs = torch.randint(0, 2, (terms,), generator=random).to(device, dtype) * 2 - 1
    with torch.no_grad(), _full_float32():
        sums = x @ w.T
        again = x[:, order] @ w[:, order].T
        moved = (x + x * (signs * (torch.finfo(dtype).eps / 2))) @ w.T
    far, near = ((one.double() - sums.double()).square().mean().sqrt().item() for one in (again, moved))
    return far / near if near > 0 else 1.0


def unproven(model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor], call: Call | None) -> str:
    """Why nothing about the removal of these neurons can be proven with this call; empty where something can."""
    if not removed:
        return "nothing is removed"
    if not any(maskable(neurons[name]) for name in removed):
        return f"no layer in the plan is exact; '{next(iter(removed))}': {neurons[next(iter(removed))].note}"
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        return "the model has no values (it is on the meta device)"
    if call is None:
        return "no example inputs are known; discover the model first"
    leaves = tree_leaves((call.args, call.kwargs))
    if any(isinstance(x, Tensor) and x.is_meta and not x.is_floating_point() for x in leaves):
        return "the example inputs have no values (they are on the meta device)"
    return ""


def batch_of(call: Call, model: nn.Module) -> Batch:
    """An example call as a batch for `model` as it is now: on its device, and in its floating-point type.

    Floating inputs that are the same everywhere (the zeros people pass when only shapes matter) become random numbers
    from a fixed seed, for on a constant input most mistakes cannot be seen.
    """
    first = next(model.parameters())
    random = torch.Generator("cpu").manual_seed(0)

    def place(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.to(first.device)
        constant = x.is_meta or bool((x == x.flatten()[:1]).all())
        values = torch.randn(x.shape, generator=random, device="cpu") if constant else x.detach()
        return values.to(first.device, first.dtype if first.is_floating_point() else x.dtype)

    args, kwargs = tree_map_only(Tensor, place, (call.args, call.kwargs))
    return Batch(args, kwargs, None, None)


def compare(model: nn.Module, expected: Iterable[Expected]) -> Agreement:
    """The worst disagreement between `model` and what was expected of it, over all batches and outputs."""
    worst = [_worst(answers(model, one.batch), one) for one in expected]
    return max(worst, key=lambda agreement: agreement.error / agreement.tolerance)


def answers(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Every floating-point tensor in the model's output, by its place there ("output", "output.logits", "output[0]").

    The model runs in evaluation mode, without gradients, from a fixed seed and without reduced-precision float32
    arithmetic; all of that is as before afterwards. Raises `DataError` where there is no such tensor.
    """
    torch.clear_autocast_cache()  # it holds weights as they were before a cut
    with evaluating(model), _full_float32():
        torch.manual_seed(0)
        output = forward(model, batch)
    found = {
        f"output{keystr(path)}": leaf.detach()
        for path, leaf in tree_leaves_with_path(output)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    }
    if not found:
        raise DataError(
            f"The model returns {type(output).__name__}, in which there is no floating-point tensor to compare.",
            hint="Return tensors, tuples, dictionaries, or a class registered with torch.utils._pytree.",
        )
    return found


def difference(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|; infinite for different shapes and for NaN."""
    if a.shape != b.shape:
        return math.inf
    if not b.numel():
        return 0.0
    wide = torch.promote_types(b.dtype, torch.float32)
    reference = b.to(wide)
    scale = reference.abs().max().item() + torch.finfo(wide).tiny
    error = (a.to(wide) - reference).abs().max().item() / scale
    return math.inf if math.isnan(error) else float(error)


def coarsest_eps(tensors: Iterable[Tensor]) -> float:
    """Unit in the last place of the coarsest floating-point type among the tensors."""
    return max(torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point() or tensor.is_complex())


def rounding(eps: float) -> float:
    """How far two ways to compute one output may be apart, relative to its largest value, in a model without depth."""
    return float(eps**0.75)


def _worst(outputs: Mapping[str, Tensor], expected: Expected) -> Agreement:
    found = [
        Agreement(
            name,
            difference(outputs[name], expected.outputs[name]) if name in outputs else math.inf,
            expected.tolerances[name],
        )
        for name in expected.outputs
    ]
    return max(found, key=lambda agreement: agreement.error / agreement.tolerance)


def _check_finite(model: nn.Module, outputs: Mapping[str, Tensor]) -> None:
    for name, output in outputs.items():
        if not torch.isfinite(output).all():
            weights = (key for key, tensor in model.state_dict().items() if not _finite(tensor))
            culprit = next(weights, None)
            raise DataError(
                f"The model's {name} holds NaN or Inf"
                + (f", and so does its weight '{culprit}'." if culprit else " for these inputs; its weights do not."),
                hint="Mend the weights first." if culprit else "Look at the inputs, and at the model in this dtype.",
            )


def _finite(tensor: Any) -> bool:
    return not isinstance(tensor, Tensor) or bool(torch.isfinite(tensor).all())


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or bfloat16 inside of float32 products, which would hide small mistakes under coarse rounding."""
    all_places = (torch.backends.cuda.matmul, *(getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn")))
    places: list[Any] = [place for place in all_places if hasattr(place, "fp32_precision")]  # since torch 2.9
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
