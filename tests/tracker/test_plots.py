import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tracker.watched_models import CNN, images

from tracker.activity import ActivityStats, GroupActivity, observe
from tracker.errors import DataError, MissingExtraError, StorageError
from tracker.figures import label
from tracker.plots import _stretched, plot_heatmap, plot_histograms

pytest.importorskip("matplotlib")

PLOTS = [plot_heatmap, plot_histograms]


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def many_layers(count: int, size: int) -> ActivityStats:
    rng = np.random.default_rng(0)
    values = [rng.random(size) for _ in range(count)]
    names = [f"encoder.layers_with_a_long_name.{index}.intermediate.dense" for index in range(count)]
    groups = [GroupActivity(n, "mlp", True, 10, v, v, -v, v, v, v) for n, v in zip(names, values, strict=True)]
    return ActivityStats("Encoder", "abc", 1, {group.name: group for group in groups})


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("statistic", ["firing_frequency", "mean_magnitude", "mean", "variance", "saturation"])
def test_a_png_is_written(tmp_path: Path, plot: Any, statistic: Any) -> None:
    path = plot(observe(CNN(), images()), tmp_path / "sub" / "plot.png", statistic)
    width, height = size_of(path)
    assert width > 500
    assert height > 150


@pytest.mark.parametrize("plot", PLOTS)
def test_many_wide_layers_and_one_of_a_single_neuron(tmp_path: Path, plot: Any) -> None:
    _, small = size_of(plot(many_layers(1, 1), tmp_path / "one.png"))
    width, large = size_of(plot(many_layers(60, 1000), tmp_path / "many.png"))
    assert small < large < 20_000
    assert width < 3000


@pytest.mark.parametrize("plot", PLOTS)
def test_pictures_of_the_same_are_the_same(tmp_path: Path, plot: Any) -> None:
    stats = many_layers(3, 20)
    assert plot(stats, tmp_path / "a.png").read_bytes() == plot(stats, tmp_path / "b.png").read_bytes()


def test_wide_layers_are_binned_by_their_means() -> None:
    values = np.sort(np.random.default_rng(0).random(1000))
    binned = _stretched(values, "firing_frequency")
    assert binned.shape == (256,)
    assert values[:4].mean() == pytest.approx(binned[0])
    assert np.average(binned, weights=np.diff(np.linspace(0, 1000, 257).round())) == pytest.approx(values.mean())


def test_narrow_layers_are_stretched() -> None:
    stretched = _stretched(np.array([1.0, 2.0, 4.0]), "mean_magnitude")
    assert np.unique(stretched).tolist() == [0.25, 0.5, 1.0]
    counts = np.unique(stretched, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_long_names_keep_both_ends() -> None:
    name = "encoder.layers_with_a_long_name.11.intermediate.dense"
    shortened = label(name)
    assert len(shortened) == 34
    assert name.startswith(shortened.split("…")[0])
    assert name.endswith(shortened.split("…")[1])
    assert label("fc1") == "fc1"


def test_names_that_have_no_glyphs_are_escaped() -> None:
    assert label("größe.0") == "größe.0"
    assert label("層\n0\t") == r"\u5c64\n0\t"


def test_no_backend_is_chosen(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = mpl.rcParams._get_backend_or_none() if hasattr(mpl.rcParams, "_get_backend_or_none") else None
    plot_heatmap(many_layers(2, 4), tmp_path / "a.png")
    after = mpl.rcParams._get_backend_or_none() if hasattr(mpl.rcParams, "_get_backend_or_none") else None
    assert before == after


@pytest.mark.parametrize("plot", PLOTS)
def test_errors(tmp_path: Path, plot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="No layer of CNN was tracked"):
        plot(ActivityStats("CNN", "", 0, {}), tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no statistic 'median'.*firing_frequency"):
        plot(many_layers(1, 2), tmp_path / "a.png", "median")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        plot(many_layers(1, 2), tmp_path / "file" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'neuronscope\[plot\]'"):
        plot(many_layers(1, 2), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
