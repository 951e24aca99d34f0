import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from tests.pruner.sample_results import sample_results

from pruner.report import Layer
from pruner.report_building import build_report
from pruner.report_charts import activity_strip, layer_bar, layers_picture, line_chart, model_profile

LAYERS = build_report(sample_results([("stem", 16), ("fc <1>", 640)])).layers


def rects(svg: str, kind: str) -> list[dict[str, Any]]:
    return [
        {key: float(value) for key, value in rect.attrib.items() if key != "class"}
        for rect in ElementTree.fromstring(svg).iter()  # noqa: S314 - our own picture
        if rect.tag.endswith("rect") and rect.attrib["class"] == kind
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_bar_is_as_long_as_the_layer_and_cut_where_neurons_went(layer: Layer) -> None:
    svg = layer_bar(layer, largest=1280)

    (kept,), (gone,) = rects(svg, "kept"), rects(svg, "gone")
    whole = max(100 * layer.before / 1280, 1.5)
    assert kept["width"] == pytest.approx(whole * layer.after / layer.before, abs=0.01)
    assert gone["width"] == pytest.approx(whole - kept["width"], abs=0.01)
    assert f"{layer.after} kept, {layer.before - layer.after} removed" in svg


def test_the_strip_covers_the_layer_and_marks_what_went() -> None:
    stem = LAYERS[0]
    svg = activity_strip(stem)

    cells = [rect for level in range(8) for rect in rects(svg, f"a{level}")]
    assert sum(rect["width"] for rect in cells) == pytest.approx(100, abs=0.1)
    marked = sum(rect["width"] for rect in rects(svg, "gone"))
    assert marked == pytest.approx(100 * (stem.before - stem.after) / stem.before, abs=0.1)


def test_a_neuron_that_never_fires_has_its_own_colour() -> None:
    results = sample_results([("fc", 3)], share=0)
    results["tracking_results"]["layers"]["fc"]["firing_frequency"] = [0.0, 1e-6, 1.0]
    svg = activity_strip(build_report(results).layers[0])

    assert [len(rects(svg, f"a{level}")) for level in (0, 1, 7)] == [1, 1, 1]


def test_the_profile_has_a_column_for_every_layer() -> None:
    layers = build_report(sample_results([(f"layer{place}", 8 + place) for place in range(30)])).layers
    columns = rects(model_profile(layers), "gone")

    assert len(columns) == 30
    lost = [1 - layer.after / layer.before for layer in layers]
    tallest = max(range(30), key=lambda place: lost[place])
    assert columns[tallest]["height"] == max(column["height"] for column in columns)


def test_a_curve_goes_through_every_epoch_and_bears_a_constant() -> None:
    chart = line_chart("loss", [1, 2, 4], [0.9, 0.5, 0.1])
    (curve,) = (part for part in ElementTree.fromstring(chart) if part.tag == "polyline")  # noqa: S314

    points = [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[2][0] - points[1][0] == pytest.approx(2 * (points[1][0] - points[0][0]), abs=0.2)
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert "nan" not in line_chart("loss", [1, 2], [0.5, 0.5])


def test_the_picture_of_all_layers_is_a_file_of_its_own() -> None:
    picture = layers_picture([(layer.name, layer.after, layer.before) for layer in LAYERS], "a <model>")

    root = ElementTree.fromstring(picture)  # noqa: S314 - our own picture
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert "Neurons of a <model>, kept and removed" in text
    assert "fc <1>" in text
    assert len(rects(picture, "kept")) == len(LAYERS)
