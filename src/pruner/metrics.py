"""A pruned model against its original in numbers, all of them measured.

Units: parameters and neurons are counts, sizes bytes, FLOPs floating-point operations of one forward on the example
inputs, latencies milliseconds of the same forward, everything else shares from 0 to 1 or ratios original / pruned.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pruner.current_map import current_map
from pruner.equivalence import batch_of
from pruner.limits import sizes_now
from pruner.registry import Registry
from tracker.batches import Batch, evaluating, forward
from tracker.discover import discover, example_call, neurons_of
from tracker.example_inputs import Call
from tracker.neuron_map import NeuronMap
from tracker.progress import progress

Metric = Callable[[nn.Module, nn.Module, Batch], Any]
"""A metric of your own: (pruned model, original model, example batch) to anything that is JSON."""

_registry: Registry[Metric] = Registry("metric", "pruner.metrics")
register, unregister = _registry.register, _registry.unregister

_WARM_UP = 3
_MOST_ROUNDS = 200
_LEAST_ROUNDS = 5
_SECONDS = 1.0


class PruningMetrics:
    """The numbers of `compute_metrics`; registered metrics come with them."""

    def compute(self, pruned_model: nn.Module, original_model: nn.Module) -> dict[str, Any]:
        """See `compute_metrics`."""
        return compute_metrics(pruned_model, original_model)


def compute_metrics(pruned_model: nn.Module, original_model: nn.Module) -> dict[str, Any]:
    """Measure both models on the inputs that one of them was discovered with, else on inputs that are guessed.

    Returns:
        `model_size`: `original_parameters`, `pruned_parameters`, `parameter_reduction` (share), `original_bytes`,
        `pruned_bytes` (parameters and buffers).
        `sparsity`: `original_neurons`, `pruned_neurons`, `neurons_removed` (share), and the share of weights that are
        zero, `original_zero_weights`, `pruned_zero_weights`.
        `flops`: `original`, `pruned`, `reduction` (share).
        `compression_ratio`: `parameters`, `bytes`, `flops` (original / pruned).
        `latency_ms`: `original`, `pruned` (medians, measured in turns).
        `speedup`: `measured` (by latency) and `estimated` (by FLOPs alone), both original / pruned.
        `memory_savings`: `bytes` and `share`.
        `custom`: what each registered metric returned, by name.

    Raises `DiscoveryError` if no inputs are known and none can be guessed: `discover(original_model, inputs)` first.
    """
    call = example_of(pruned_model, original_model)
    batch = batch_of(call, original_model)
    models = original_model, pruned_model
    original_parameters, pruned_parameters = map(count_parameters, models)
    original_bytes, pruned_bytes = map(count_bytes, models)
    original_flops, pruned_flops = (count_flops(model, batch_of(call, model)) for model in models)
    original_ms, pruned_ms = latencies_ms(models, [batch_of(call, model) for model in models])
    original_neurons, pruned_neurons = _count_neurons(original_model, pruned_model, call)
    return {
        "model_size": {
            "original_parameters": original_parameters,
            "pruned_parameters": pruned_parameters,
            "parameter_reduction": _reduction(original_parameters, pruned_parameters),
            "original_bytes": original_bytes,
            "pruned_bytes": pruned_bytes,
        },
        "sparsity": {
            "original_neurons": original_neurons,
            "pruned_neurons": pruned_neurons,
            "neurons_removed": _reduction(original_neurons, pruned_neurons),
            "original_zero_weights": zero_weights(original_model),
            "pruned_zero_weights": zero_weights(pruned_model),
        },
        "flops": {
            "original": original_flops,
            "pruned": pruned_flops,
            "reduction": _reduction(original_flops, pruned_flops),
        },
        "compression_ratio": {
            "parameters": _ratio(original_parameters, pruned_parameters),
            "bytes": _ratio(original_bytes, pruned_bytes),
            "flops": _ratio(original_flops, pruned_flops),
        },
        "latency_ms": {"original": original_ms, "pruned": pruned_ms},
        "speedup": {
            "measured": _ratio(original_ms, pruned_ms),
            "estimated": _ratio(original_flops, pruned_flops),
        },
        "memory_savings": {
            "bytes": original_bytes - pruned_bytes,
            "share": _reduction(original_bytes, pruned_bytes),
        },
        "custom": {name: metric(pruned_model, original_model, batch) for name, metric in _registry.items()},
    }


def example_of(pruned_model: nn.Module, original_model: nn.Module) -> Call:
    """The call that one of the models was discovered with; discovers the original where none was.

    Raises `DiscoveryError` if no inputs can be guessed.
    """
    if (known := example_call(pruned_model) or example_call(original_model)) is not None:
        return known
    neurons_of(original_model)
    return example_call(original_model) or Call()


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; what is tied counts once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in chain(model.parameters(), model.buffers()))


def zero_weights(model: nn.Module) -> float:
    """Share of the parameters that are exactly zero, from 0 to 1."""
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    return zeros / max(count_parameters(model), 1)


def count_flops(model: nn.Module, batch: Batch) -> int:
    """Floating-point operations of one forward, as PyTorch counts them: products and convolutions, two per term."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        forward(model, batch)
    return int(counter.get_total_flops())


def latencies_ms(models: Sequence[nn.Module], batches: Sequence[Batch]) -> list[float]:
    """Median milliseconds of one forward of each model.

    The models take turns, in the same process, so that whatever else the machine does meets all of them. After the
    warm-up it goes on for about a second, for 5 to 200 rounds.
    """
    times: list[list[float]] = [[] for _ in models]
    for _ in progress(_rounds(), "Measuring latency"):
        for taken, model, batch in zip(times, models, batches, strict=True):
            with evaluating(model):
                wait_for_device(batch)
                start = time.perf_counter()
                forward(model, batch)
                wait_for_device(batch)
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken[_WARM_UP:]) * 1000 for taken in times]


def _rounds() -> Iterator[int]:
    """Numbers of rounds: the warm-up, then as many as fit into the time."""
    start = time.perf_counter()
    for number in range(_WARM_UP + _MOST_ROUNDS):
        if number == _WARM_UP:
            start = time.perf_counter()
        if number >= _WARM_UP + _LEAST_ROUNDS and time.perf_counter() - start > _SECONDS:
            return
        yield number


def wait_for_device(batch: Batch) -> None:
    """Accelerators compute behind the program's back; wait until they are done."""
    for value in (*batch.args, *batch.kwargs.values()):
        if isinstance(value, torch.Tensor) and value.is_cuda:
            torch.cuda.synchronize(value.device)


def _count_neurons(original: nn.Module, pruned: nn.Module, call: Call) -> tuple[int, int]:
    before, after = _map(original, call), _map(pruned, call)
    return before.neurons, sum(sizes_now(after, [group.name for group in before]).values())


def _map(model: nn.Module, call: Call) -> NeuronMap:
    """A model's map; one that was never discovered is shown the call that is good for the other one."""
    return current_map(model) if example_call(model) else discover(model, call.args, call.kwargs)


def _ratio(original: float, pruned: float) -> float:
    return original / pruned if pruned else 1.0


def _reduction(original: float, pruned: float) -> float:
    return 1 - pruned / original if original else 0.0
