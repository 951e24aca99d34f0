"""Running statistics against those of the data themselves."""

import torch
from torch import nn

import pruner
from pruner.compensation.batch_norms import reestimate, tracking
from tracker.batches import Batch


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    ).eval()


def test_statistics_are_the_mean_over_batches() -> None:
    net = model()
    batches = [Batch((3 * torch.randn(16, 1, 8, 8) + 1,)) for _ in range(3)]
    reestimate(net, batches)
    written = [net[0](batch.args[0]) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in written]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in written]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[1].running_var, variance.detach(), rtol=1e-4, atol=1e-5)
    assert not any(norm.training for norm in tracking(net))
    assert [norm.momentum for norm in tracking(net)] == [0.1, 0.1]


def test_it_is_a_step_of_the_repair_and_kept_only_where_it_helps() -> None:
    net = model()
    data = [torch.randn(32, 1, 8, 8) for _ in range(4)]
    with torch.no_grad():  # a trained model's statistics are those of its data
        reestimate(net, [Batch((x,)) for x in data])
    results = pruner.compress(net, data, ratio=0.5, effort="low")
    distances = results["repair"]["distances"]
    assert "batch norms" in distances
    assert results["repair"]["kept"] == min(distances, key=lambda step: distances[step])
    changed = "4.running_var" in results["repair"]["repaired"]
    assert changed == (results["repair"]["kept"] == "batch norms")
    assert results["verification"]["summary"]["overall_success"]


def test_a_single_value_a_channel_teaches_a_norm_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    one, two = Batch((torch.randn(1, 1, 8, 8),)), Batch((torch.randn(2, 1, 8, 8),))
    assert not reestimate(net, [one])
    assert reestimate(net, [two])
    wanted = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert reestimate(net, [one, two])
    assert all(torch.equal(buffer, wanted[name]) for name, buffer in net.named_buffers())
