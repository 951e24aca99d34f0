"""The page in a real browser: each number on it is what the server says."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.neuronscope.server.browser import opened
from tests.neuronscope.server.running import running

from neuronscope.server.app import PAGE

pytest.importorskip("fastapi")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("page"), "stdlib-gpt") as client:
        client.get("/api/models/current")
        yield client


@pytest.fixture
def page(api: httpx.Client) -> Iterator[Any]:
    with opened(viewport={"width": 1280, "height": 900}) as page:
        page.goto(str(api.base_url))
        page.wait_for_selector("canvas:not(.waiting)")
        yield page
        assert page.said == []


def slide(page: Any, value: int) -> None:
    page.locator("input[type=range]").fill(str(value))


def score(page: Any, neurons: int) -> float:
    """The impact that is shown for so many neurons, once it is that of the latest selection."""
    page.wait_for_selector(f"h2:has-text('Without {neurons:,} of them')")
    page.wait_for_selector(".result:not(.old) .score")
    return float(page.locator(".score b").text_content())


@pytest.mark.browser
def test_choosing_shows_what_the_model_says_without(page: Any, api: httpx.Client) -> None:
    magnitudes = np.frombuffer(api.get("/api/neurons.bin?metric=magnitude").content, "<f4").reshape(6, 768)
    slide(page, 10)
    lowest = [[layer, int(n)] for layer in range(6) for n in np.argsort(magnitudes[layer], kind="stable")[:76]]
    text = page.locator("textarea").input_value()
    body = {"neurons": lowest, "input_texts": [text], "continuations": 16}
    told = api.post("/api/pruning/simulate", json=body).json()
    assert score(page, 6 * 76) == pytest.approx(told["impact_score"], abs=5e-4)
    shown = page.locator("section[aria-label='Without the chosen neurons']").text_content()
    assert f"{told['saved']['parameters_after']:,}" in shown
    assert told["continuations"][0]["after"] in shown
    slide(page, 30)
    more = score(page, 6 * 230)
    assert more > told["impact_score"]
    page.keyboard.press("Escape")
    page.locator("button:has-text('Undo')").click()
    assert score(page, 6 * 76) == pytest.approx(told["impact_score"], abs=5e-4)
    page.locator("button:has-text('Redo')").click()
    assert score(page, 6 * 230) == more
    page.locator("label:has-text('Instead of them') select").select_option("repaired")
    page.wait_for_function(f"() => document.querySelector('.score b').textContent !== '{more:.3f}'")
    page.locator("button:has-text('Clear')").click()
    page.wait_for_selector("text=Choose neurons on the map")


@pytest.mark.browser
def test_brush_and_keyboard(page: Any) -> None:
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 3 - 5)
    page.mouse.up()
    (heading,) = re.findall(
        r"Without ([\d,]+) of them", page.locator("section[aria-label='Without the chosen neurons'] h2").text_content()
    )
    brushed = int(heading.replace(",", ""))
    assert brushed == pytest.approx(2 * 0.25 * 768, abs=6)  # two layers, a quarter of each
    page.locator("canvas").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    page.wait_for_selector(f"h2:has-text('Without {brushed + 1} of them')")
    assert "layer 2, neuron" in page.locator(".where").text_content()
    page.keyboard.press("Control+z")
    page.wait_for_selector(f"h2:has-text('Without {brushed} of them')")


@pytest.mark.browser
def test_selections_are_saved_with_any_name_and_come_back(page: Any, api: httpx.Client) -> None:
    hostile = "<img src=x onerror=alert(1)> \u202etxt"
    slide(page, 5)
    page.locator("#tab-saved").click()
    page.locator("form input[maxlength]").fill(hostile)
    page.locator("button:has-text('Save these')").click()
    page.wait_for_selector("section[aria-label='Saved selections'] li")
    (saved,) = [one for one in api.get("/api/selections").json()["selections"] if one["name"] == hostile]
    assert len(saved["neurons"]) == 6 * 38
    page.reload()
    page.wait_for_selector("canvas:not(.waiting)")
    button = page.locator("section[aria-label='Saved selections'] button.link")
    assert button.text_content() == hostile
    assert page.locator("section img").count() == 0
    button.click()
    page.wait_for_selector("h2:has-text('Without 228 of them')")
    page.locator("button:has-text('Forget')").click()
    page.wait_for_selector("text=None yet.")
    assert api.get(f"/api/selections/{saved['id']}").status_code == 404


@pytest.mark.browser
def test_a_server_that_is_gone_is_said(tmp_path: Path) -> None:
    with opened() as page:
        with running(tmp_path, "digits-vit") as api:
            page.goto(str(api.base_url))
            page.wait_for_selector("canvas:not(.waiting)")
        slide(page, 10)
        page.wait_for_selector(".problem:has-text('The server does not answer.')")


@pytest.mark.browser
def test_the_histogram_zoom_and_table_show_the_same_neurons(page: Any, api: httpx.Client) -> None:
    magnitudes = np.frombuffer(api.get("/api/neurons.bin?metric=magnitude").content, "<f4")
    limit = float(np.quantile(magnitudes, 0.02))
    field = page.locator(".histogram input")
    field.fill(repr(limit))
    field.press("Enter")
    expected = int((magnitudes < np.float32(limit)).sum())
    page.wait_for_selector(f"h2:has-text('Without {expected} of them')")
    page.locator("#tab-table").click()
    first = int(np.argmin(magnitudes))
    row = page.locator(".rows tbody tr").first
    assert row.locator("button").text_content() == f"layer {first // 768}, neuron {first % 768}"
    assert float(row.locator("td").nth(2).text_content()) == pytest.approx(magnitudes[first], rel=5e-3)
    assert row.locator("input").is_checked()
    row.locator("input").click()
    page.wait_for_selector(f"h2:has-text('Without {expected - 1} of them')")
    page.locator("input[name=place]").fill("3, 700")
    page.locator("button:has-text('Go')").click()
    page.wait_for_selector("h2:has-text('Neuron 700 of')")
    page.locator("button[aria-label=Closer]").click()
    page.locator("button[aria-label=Closer]").click()
    page.wait_for_function(
        "() => { const [from, to] = (location.hash.match(/view=([\\d.]+)-([\\d.]+)/) ?? []).slice(1).map(Number);"
        " return location.hash.includes('focus=3-700') && Math.abs(to - from - 0.25) < 1e-6; }"
    )
    page.reload()  # the address brings it back
    page.wait_for_selector("h2:has-text('Neuron 700 of')")
    assert page.locator("#tab-table").get_attribute("aria-selected") == "true"


@pytest.mark.browser
def test_a_neuron_shows_what_it_does(page: Any, api: httpx.Client) -> None:
    page.locator("canvas").focus()
    page.keyboard.press("ArrowDown")
    page.locator("button:has-text('What does it do?')").click()
    page.wait_for_selector(".details")
    told = api.get("/api/neurons/1/0?details=true").json()
    shown = page.locator(".details td").all_text_contents()
    assert [float(value) for value in shown[::2]] == pytest.approx(
        [one["impact_score"] for one in told["impact"].values()], abs=1e-4
    )
    assert page.locator(".tokens mark").count() == len(told["top_tokens"])
    other = told["correlated"][0]["neuron_index"]
    page.locator(f".details button.link:has-text('{other} (')").first.click()
    page.wait_for_selector(f"h2:has-text('Neuron {other} of')")


@pytest.mark.browser
def test_weights_and_models_are_shown_as_the_server_tells_them(page: Any, api: httpx.Client) -> None:
    page.locator("#tab-weights").click()
    page.locator("button:has-text('Look for structure')").click()
    page.wait_for_selector("section[aria-label=Weights] tbody tr")
    told = api.get("/api/pruning/sparsity-patterns").json()["patterns"]
    assert page.locator("section[aria-label=Weights] tbody th").all_text_contents() == [
        one["layer_name"] for one in told
    ]
    page.keyboard.press("Tab")
    page.locator("#tab-weights").press("ArrowLeft")
    page.wait_for_selector("#tab-compare[aria-selected=true]")
    page.locator("label:has-text('stdlib-llama') input").check()
    page.locator("section[aria-label='Compare models'] button.main").click()
    page.wait_for_selector("section[aria-label='Compare models'] tbody tr")
    cells = page.locator("section[aria-label='Compare models'] tbody td").all_text_contents()
    body = {"models": ["stdlib-llama"], "input_texts": [page.locator("textarea").input_value()]}
    models = api.post("/api/compare", json=body).json()["models"]
    assert cells[0] == f"{models['stdlib-gpt']['parameters']:,}"
    assert float(cells[12 - 1]) == pytest.approx(models["stdlib-llama"]["metrics"]["score"], abs=5e-4)


@pytest.mark.slow
@pytest.mark.browser
def test_a_point_of_the_search_becomes_the_selection(page: Any, api: httpx.Client) -> None:
    page.locator("#tab-search").click()
    page.locator("section[aria-label=Search] input").fill("0.3")
    page.locator("section[aria-label=Search] button.main").click()
    page.wait_for_selector(".points li")
    told = api.post("/api/pruning/optimize", json={"tolerance": 0.3}).json()
    assert page.locator(".points li").count() == len(told["front"])
    page.locator(".points button").first.click()
    page.wait_for_selector(f"h2:has-text('Without {len(told['front'][0]['neurons']):,} of them')")


def test_what_is_vendored_is_what_the_manifest_says() -> None:
    manifest = json.loads((PAGE / "vendor" / "manifest.json").read_text())
    assert {path.name for path in (PAGE / "vendor").iterdir()} == {"manifest.json", *manifest}
    for name, entry in manifest.items():
        assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == entry["sha256"]
        assert entry["licence"]
    for source in PAGE.glob("*.js"):
        assert "innerHTML" not in source.read_text()


def test_all_modules_are_asked_for_at_once() -> None:
    index = (PAGE / "index.html").read_text()
    modules = {path.name for path in PAGE.glob("*.js")} - {"app.js", "sorting.js"}  # the first, and the worker
    assert set(re.findall(r'modulepreload" href="/([^"]+)"', index)) == modules | {"vendor/htm-preact.js"}
