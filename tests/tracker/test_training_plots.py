from pathlib import Path

import numpy as np
import pytest

from tracker.activity import ActivityStats, GroupActivity
from tracker.errors import DataError
from tracker.history import History
from tracker.neuron_history import NeuronHistory
from tracker.training_plots import _evenly, _headings, _order, animate_neuron_history, plot_neuron_history

pytest.importorskip("matplotlib")


def trained(layers: int = 2, size: int = 20, epochs: int = 5) -> tuple[NeuronHistory, History]:
    """A training in which one neuron more dies in every epoch, and two are removed in the last but one."""
    rng = np.random.default_rng(0)
    neurons, history = NeuronHistory("Net"), History(model="Net")
    present = size
    for epoch in range(epochs):
        if epoch == epochs - 2 and size > 4:
            for name in neurons.layers:
                neurons.removed(name, [present - 1, present - 2])
            present -= 2
        groups = {}
        for index in range(layers):
            values = rng.random(present) + 0.01
            values[:epoch] = 0
            zeros = np.zeros_like(values)
            name = f"encoder.layers_with_a_long_name.{index}.intermediate.dense"
            groups[name] = GroupActivity(name, "mlp", True, 9, values, zeros, zeros, values, values, values.clip(0, 1))
        stats = ActivityStats("Net", "abc", 1, groups)
        neurons.log(stats, epoch)
        history.log(stats, epoch, 1 / (1 + epoch), None)
    return neurons, history


def size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(("layers", "size", "epochs"), [(1, 1, 1), (2, 20, 5), (60, 700, 3)])
def test_a_picture_of_every_neuron(tmp_path: Path, layers: int, size: int, epochs: int) -> None:
    history, _ = trained(layers, size, epochs)
    width, height = size_of(plot_neuron_history(history, tmp_path / "sub" / "h.png"))
    assert 500 < width < 3000
    assert 300 < height < 5000


def test_dead_neurons_are_vermilion(tmp_path: Path) -> None:
    from PIL import Image

    def vermilion(history: NeuronHistory) -> int:
        with Image.open(plot_neuron_history(history, tmp_path / "h.png")) as image:
            pixels = np.asarray(image.convert("RGB"))
        return int((pixels == (0xD5, 0x5E, 0x00)).all(-1).sum())

    few, many = trained(epochs=3)[0], trained(epochs=9)[0]
    assert 0 < vermilion(few) * 2 < vermilion(many)


def test_an_animation_has_a_frame_for_every_epoch(tmp_path: Path) -> None:
    from PIL import Image

    history, losses = trained()
    sizes = []
    for given in (losses, None):
        with Image.open(animate_neuron_history(history, tmp_path / "h.gif", given)) as image:
            assert image.n_frames == 5
            sizes.append(image.size)
    assert sizes[0][1] > sizes[1][1]  # the loss has its own place


def test_pictures_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No epoch"):
        plot_neuron_history(NeuronHistory(), tmp_path / "h.png")
    with pytest.raises(DataError, match=r"end in \.gif"):
        animate_neuron_history(trained()[0], tmp_path / "h.mp4")


def test_rows_are_sorted_by_death() -> None:
    history, _ = trained(layers=1, size=8, epochs=4)
    layer = history.layer(history.layers[0])
    assert _order(layer).tolist()[:3] == [0, 1, 2]
    assert _order(layer).tolist()[3:5] in ([6, 7], [7, 6])  # those that were removed


def test_names_are_short_enough_for_a_panel() -> None:
    names = [f"encoder.layers_with_a_long_name.{index}.intermediate.dense" for index in range(2)]
    assert _headings(names) == ["…0.intermediate.dense", "…1.intermediate.dense"]
    assert _headings(["fc1"]) == ["fc1"]
    assert _evenly(range(10), 4) == [0, 3, 6, 9]
