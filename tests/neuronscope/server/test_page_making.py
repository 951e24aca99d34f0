"""From a selection to a smaller model and back, and what training did: each number is what the server says."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tests.neuronscope.server.browser import opened
from tests.neuronscope.server.running import running
from tests.neuronscope.server.test_page import score, slide
from tests.neuronscope.server.training_run import EPOCHS, trained

pytest.importorskip("fastapi")
pytest.importorskip("transformers")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("making")
    with running(folder, "digits-vit", history=trained(folder)) as client:
        yield client


@pytest.fixture
def sizes(api: httpx.Client) -> list[int]:
    return api.get("/api/models/current").json()["layer_sizes"]  # type: ignore[no-any-return]


@pytest.fixture
def page(api: httpx.Client) -> Iterator[Any]:
    with opened(viewport={"width": 1280, "height": 900}) as page:
        page.goto(str(api.base_url))
        page.wait_for_selector("canvas:not(.waiting)")
        yield page
        assert page.said == []


def chosen(page: Any) -> int:
    heading = page.locator("section[aria-label='Without the chosen neurons'] h2").text_content()
    return int(heading.removeprefix("Without ").removesuffix(" of them").replace(",", ""))


def test_the_lowest_of_the_whole_model(page: Any, api: httpx.Client, sizes: list[int]) -> None:
    values = np.frombuffer(api.get("/api/neurons.bin?metric=magnitude").content, "<f4")
    places = [[layer, neuron] for layer, size in enumerate(sizes) for neuron in range(size)]
    wanted = len(values) // 5
    lowest = [places[index] for index in np.argsort(values, kind="stable")[:wanted]]
    slide(page, 20)
    page.locator("label:has-text('each layer') select").select_option("model")
    shown = score(page, wanted)
    told = api.post("/api/pruning/simulate", json={"neurons": lowest}).json()
    assert shown == pytest.approx(told["impact_score"], abs=5e-4)


def test_a_free_shape_and_a_rectangle_by_keys(page: Any, sizes: list[int]) -> None:
    page.locator("label:has-text('Drag') select").select_option("shape")
    box = page.locator("canvas").first.bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    corners = [(0.1, 0.0), (0.5, 0.0), (0.5, 1.0), (0.3, 1.0)]  # its left edge goes from 0.1 to 0.3
    page.mouse.move(*at(*corners[0]))
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*at(*corner), steps=4)
    assert page.locator(".trail polygon").count() == 1
    page.mouse.up()
    # In each row a neuron counts that the shape touches: from its left edge where the row begins.
    rows = len(sizes)
    expected = sum(size * (0.5 - 0.1 - 0.2 * (layer + 0.1) / rows) for layer, size in enumerate(sizes))
    page.wait_for_selector("h2:has-text('Without')")
    assert chosen(page) == pytest.approx(expected, rel=0.03)
    page.locator("button:has-text('Clear')").click()
    page.locator("canvas").first.focus()
    for key in ("ArrowRight", "x", "ArrowUp", "ArrowRight", "ArrowRight", "x"):
        page.keyboard.press(key)
    # Three neurons of the last two layers, from where the shape ended.
    assert chosen(page) == 6


def test_the_overview_tells_what_the_server_measured(page: Any, api: httpx.Client, sizes: list[int]) -> None:
    page.wait_for_selector("section[aria-label=Overview] dd:has-text(' ms on cpu')")
    told = api.get("/api/models/latency").json()
    shown = page.locator("section[aria-label=Overview] dd:has-text(' ms on')").text_content()
    assert float(shown.split(" ms")[0]) == pytest.approx(told["latency_ms"], rel=6e-3)
    assert page.locator(".spread tbody tr").count() == len(sizes)
    slide(page, 10)
    score(page, sum(int(size * 0.1 + 1e-9) for size in sizes))
    share = page.locator(".spread tbody tr").first.locator("td").nth(1).text_content()
    assert float(share.removesuffix(" %")) == pytest.approx(100 * int(sizes[0] * 0.1) / sizes[0], abs=0.06)


def test_a_smaller_model_is_made_tuned_and_left_again(page: Any, api: httpx.Client, sizes: list[int]) -> None:
    before = api.get("/api/models/current").json()
    slide(page, 30)
    score(page, sum(int(size * 0.3 + 1e-9) for size in sizes))
    page.locator("input[placeholder='of the smaller model']").fill("a third less")
    page.locator("button:has-text('Make the smaller model')").click()
    page.wait_for_selector(".made:has-text('checks passed')")
    (made,) = [one for one in api.get("/api/models").json()["models"].values() if one["made"]]
    assert made["made"]["title"] == "a third less"
    assert api.get(made["made"]["download"]).headers["content-type"] == "application/zip"
    assert api.get("/api/models/current").json()["fingerprint"] == before["fingerprint"]
    page.locator("button:has-text('look at it')").click()
    page.wait_for_selector("header:has-text('Made here from digits-vit')")
    small = api.get("/api/models/current").json()
    assert small["parameters"] < before["parameters"]
    page.wait_for_selector(f".facts:has-text('{small['parameters']:,} parameters')")
    page.locator("#tab-models").click()
    page.locator("button[aria-label='Fine-tune a third less']").click()
    page.locator(".tune input[type=number]").fill("2")
    page.locator(".tune button.main").click()
    page.wait_for_selector(".tune .made")
    (job,) = [one for one in api.get("/api/jobs").json()["jobs"] if one["kind"] == "finetune"]
    told = api.get(f"/api/jobs/{job['id']}/result").json()
    shown = page.locator(".tune .made").text_content()
    assert f"After {told['steps']} steps" in shown
    page.wait_for_selector("section[aria-label=Models] li:has-text('fine-tuned')")
    page.locator("header button:has-text('Go back to it')").click()
    page.wait_for_selector(f".facts:has-text('{before['parameters']:,} parameters')")
    assert api.get("/api/models/current").json()["fingerprint"] == before["fingerprint"]


def test_training_is_scrubbed_by_epoch(page: Any, api: httpx.Client) -> None:
    page.locator("#tab-training").click()
    page.wait_for_selector(".past canvas:not(.waiting)")
    told = api.get("/api/histories/digits-mlp").json()
    status = page.locator("section[aria-label='Training history'] [role=status]").first
    for epoch in (EPOCHS - 1, 0, 4):
        page.locator("input.epochs").fill(str(epoch))
        assert f"loss {told['loss'][epoch]:.3g}" in status.text_content()
        assert f"{sum(told['dead'][epoch])} of 192 neurons dead" in status.text_content()
    page.locator(".past canvas").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("figcaption:has-text('layer 0, neuron 1')")
    curve = api.get("/api/histories/digits-mlp/neurons/0/1").json()["firing_frequency"]
    caption = page.locator("figcaption:has-text('layer 0, neuron 1')").text_content()
    assert float(caption.rsplit(": ", 1)[1]) == pytest.approx(curve[4], rel=6e-3, abs=1e-6)
    page.locator("input.epochs").fill("0")
    page.locator("button:has-text('Play')").click()
    page.wait_for_function(f"() => document.querySelector('input.epochs').value === '{EPOCHS - 1}'")


def test_exact_impacts_are_shown_where_they_are_known(page: Any, api: httpx.Client, sizes: list[int]) -> None:
    page.locator("section[aria-label='Neuron map'] select").first.select_option("exact")
    page.locator("form:has-text('Find out') select").select_option("1")
    page.locator("button:has-text('Find out the exact impact')").click()
    page.wait_for_selector("form:has-text('Find out') .working")
    page.wait_for_selector("form:has-text('Find out') .working", state="detached")
    body = {"layer_index": 1, "method": "exact"}
    told = [
        one["impact_score"] for one in api.post("/api/pruning/neuron-importance", json=body).json()["importance_scores"]
    ]
    values = np.frombuffer(api.get("/api/neurons.bin?metric=exact").content, "<f4")
    assert np.isnan(values[: sizes[0]]).all()
    np.testing.assert_allclose(values[sizes[0] : sizes[0] + sizes[1]], told, rtol=1e-6)
    page.locator("#tab-table").click()
    page.locator("section[aria-label='Table of neurons'] select").first.select_option("highest")
    page.wait_for_selector(f"button:has-text('layer 1, neuron {int(np.argmax(told))}')")
    shown = page.locator(".rows tbody tr").first.locator("td").nth(2).text_content()
    assert float(shown) == pytest.approx(max(told), rel=6e-3)


def test_the_time_is_estimated_from_the_operations(page: Any, api: httpx.Client, sizes: list[int]) -> None:
    slide(page, 50)
    score(page, sum(int(size * 0.5 + 1e-9) for size in sizes))
    told = api.get("/api/models/latency").json()
    gone = sum(share * int(size * 0.5 + 1e-9) for share, size in zip(told["neuron_shares"], sizes, strict=True))
    shown = page.locator("dt:has-text('one forward, estimated') + dd").text_content()
    before, after = (float(part.removesuffix(" ms")) for part in shown.split(" → "))
    assert before == pytest.approx(told["latency_ms"], rel=6e-3)
    assert after == pytest.approx(told["latency_ms"] * (1 - gone), rel=6e-3)
