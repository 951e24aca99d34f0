"""What a repair says about its memory beforehand."""

import pytest
import torch
from torch import nn

import pruner
from pruner.compensation import footprint
from pruner.compensation.bench import Bench
from pruner.compensation.footprint import Footprint, announce, free_bytes
from tracker import discover
from tracker.batches import evaluating, iter_batches
from tracker.errors import ConfigError

CPU = torch.device("cpu")


def net(width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8)) for _ in range(3)]
    return nn.Sequential(nn.Sequential(*blocks), nn.Linear(8, 4))


def needed(samples: int, copies: int = 0, training: bool = False, width: int = 32) -> Footprint:
    model = net(width)
    data = [torch.randn(8, 8) for _ in range(samples // 8)]
    neurons = discover(model, data[0])
    with evaluating(model):
        bench = Bench.of(model, neurons, [group.name for group in neurons], list(iter_batches(data, model)))
        return footprint.footprint(bench, copies, training=training)


def test_only_what_blocks_hand_on_grows_with_the_samples():
    few, many = needed(16), needed(64)
    assert many.remembered == 4 * few.remembered > 0
    assert (many.copies, many.moments) == (few.copies, few.moments)
    assert needed(16, copies=3).remembered == 4 * few.remembered


def test_training_remembers_inputs_and_targets_too():
    assert needed(16, training=True).remembered == 2 * needed(16).remembered


def test_moments_grow_with_the_square_of_the_width():
    assert needed(16, width=64).moments > 3 * needed(16, width=32).moments


def test_what_blocks_hand_on_is_counted_to_the_byte():
    assert needed(16).remembered == 16 * 8 * 4 * 2  # samples × features × bytes, of the dense model and the pruned one


def test_more_than_is_free_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 10_000_000)
    announce(Footprint(1, 2, 3), CPU)
    with pytest.raises(ConfigError, match=r"5\.0 GB .*beside the model; 10 MB are free on cpu"):
        announce(Footprint(4_000_000_000, 500_000_000, 500_000_000), CPU)


def test_compress_refuses_before_it_starts_and_changes_nothing(monkeypatch):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match="beside the model"):
        pruner.compress(model, [torch.randn(16, 8)], ratio=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_results_carry_it():
    results = pruner.compress(net(), [torch.randn(16, 8)], ratio=0.5, effort="low")
    assert set(results["memory"]) == {"copies", "moments", "remembered"}
    assert all(value > 0 for value in results["memory"].values())


def test_free_memory_is_known_here():
    free = free_bytes(CPU)
    assert free is None or free > 0
