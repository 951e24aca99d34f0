"""The page when something is unusual: for everybody to use, in two tabs, slow, without its server, or mistaken."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.neuronscope.server.browser import opened, tab
from tests.neuronscope.server.running import running
from tests.neuronscope.server.test_page import score, slide
from tests.neuronscope.server.training_run import trained

pytest.importorskip("fastapi")
pytest.importorskip("transformers")
pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \u202e{{7*7}} ${alert(1)}"
)
TABS = ("overview", "saved", "table", "search", "models", "compare", "weights", "training", "jobs")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("states")
    with running(folder, "stdlib-gpt", history=trained(folder)) as client:
        client.get("/api/models/current")
        yield client


def shown(page: Any, api: httpx.Client) -> Any:
    page.goto(str(api.base_url))
    page.wait_for_selector("canvas:not(.waiting)")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_out_of_reach(api: httpx.Client, scheme: str) -> None:
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js").read_text()
    with opened(viewport={"width": 1280, "height": 900}, color_scheme=scheme) as page:
        shown(page, api)
        page.evaluate(axe)

        def check(state: str) -> None:
            found = page.evaluate("() => axe.run(document)")
            told = [(one["id"], [node["target"] for node in one["nodes"]]) for one in found["violations"]]
            assert told == [], state
            assert len(found["passes"]) > 30

        check("start")
        slide(page, 10)
        score(page, 6 * 76)
        page.locator("canvas").first.focus()
        page.keyboard.press("ArrowDown")
        page.locator("button:has-text('What does it do?')").click()
        page.wait_for_selector(".details")
        for name in TABS:
            page.locator(f"#tab-{name}").click()
            page.wait_for_selector(f"#tab-{name}[aria-selected=true]")
            if name == "training":
                page.wait_for_selector(".past canvas:not(.waiting)")
            check(name)
        page.evaluate("() => document.querySelector('h1').setAttribute('role', 'nonsense')")
        assert page.evaluate("() => axe.run(document)")["violations"], "the check would not see a mistake"
        assert page.said == []


def test_two_tabs_keep_their_own_and_share_what_is_saved(api: httpx.Client) -> None:
    with opened() as one:
        other = tab(one.context)
        shown(one, api)
        shown(other, api)
        slide(one, 10)
        slide(other, 20)
        low, high = score(one, 6 * 76), score(other, 6 * 153)
        assert low < high
        one.locator("#tab-saved").click()
        one.locator("form input[maxlength]").fill("from the first tab")
        one.locator("button:has-text('Save these')").click()
        other.locator("#tab-saved").click()
        other.locator("button.link:has-text('from the first tab')").click()
        assert score(other, 6 * 76) == low
        # The server turns to another model: the first tab must not be answered about that one.
        other.locator("header select").select_option("digits-vit")
        other.wait_for_selector(".facts:has-text('ViT')")
        slide(one, 30)
        one.wait_for_selector(".problem:has-text('The server has turned to another model')")
        one.locator("button:has-text('Load stdlib-gpt again')").click()
        one.wait_for_selector(".facts:has-text('GPT2')")
        one.wait_for_selector("canvas:not(.waiting)")
        slide(one, 10)
        assert score(one, 6 * 76) == low
        assert api.get("/api/models").json()["current_model"] == "stdlib-gpt"


def test_hostile_words_are_only_words(api: httpx.Client) -> None:
    with opened() as page:
        shown(page, api)
        page.locator("textarea").fill(HOSTILE)
        slide(page, 10)
        score(page, 6 * 76)
        body = {"neurons": [[0, 0]], "input_texts": [HOSTILE], "continuations": 1}
        assert api.post("/api/pruning/simulate", json=body).status_code == 200
        assert "<img" in page.locator(".says").first.text_content()
        page.locator("#tab-models").click()
        page.locator("section[aria-label=Models] input").fill(HOSTILE)
        page.locator("button:has-text('Load it')").click()
        page.wait_for_selector(".problem:has-text('There is no model')")
        assert page.locator("section img, script:not([src])").count() == 0
        assert page.title() == "NeuronScope"
        assert all("404" in line for line in page.said)  # what Chromium says of the answer


def test_a_failing_job_is_said_and_changes_nothing(api: httpx.Client) -> None:
    with opened() as page:
        shown(page, api)
        slide(page, 10)
        before = score(page, 6 * 76)
        page.locator("#tab-models").click()
        page.locator("section[aria-label=Models] input").fill("nobody/no-such-model")
        page.locator("button:has-text('Load it')").click()
        page.wait_for_selector("header + .problem")
        assert score(page, 6 * 76) == before
        assert api.get("/api/models").json()["current_model"] == "stdlib-gpt"
        page.locator("#tab-jobs").click()
        page.wait_for_selector("section[aria-label=Jobs] .state.failed")
        (failed, *_) = [job for job in api.get("/api/jobs").json()["jobs"] if job["state"] == "failed"]
        assert failed["error"]["error"] in page.locator("section[aria-label=Jobs] .why").first.text_content()
        count = page.locator("section[aria-label=Jobs] .state.failed").count()
        page.locator("section[aria-label=Jobs] button:has-text('Run again')").first.click()
        page.wait_for_function(f"() => document.querySelectorAll('.state.failed').length > {count}")


def test_a_slow_network_shows_what_is_awaited_and_ends_right(api: httpx.Client) -> None:
    with opened() as page:
        page.goto(f"{api.base_url}#open=saved")
        page.wait_for_selector("canvas:not(.waiting)")
        slow = page.context.new_cdp_session(page)
        slow.send("Network.enable")
        limits = {"offline": False, "latency": 800, "downloadThroughput": 40_000, "uploadThroughput": 40_000}
        slow.send("Network.emulateNetworkConditions", limits)
        page.locator("section[aria-label='Neuron map'] select").first.select_option("score")
        page.wait_for_selector("canvas.waiting")
        page.wait_for_selector(".legend:has-text('working …')")
        page.wait_for_selector("canvas:not(.waiting)")
        for value in (5, 10, 15, 20):  # only the last one counts
            slide(page, value)
            page.wait_for_timeout(350)
        page.wait_for_selector(".working")
        last = score(page, 6 * 153)
        scores = api.get("/api/neurons.bin?metric=score").content
        values = np.frombuffer(scores, "<f4").reshape(6, 768)
        chosen = [[layer, int(n)] for layer in range(6) for n in np.argsort(values[layer], kind="stable")[:153]]
        body = {"neurons": chosen, "input_texts": [page.locator("textarea").input_value()]}
        assert last == pytest.approx(api.post("/api/pruning/simulate", json=body).json()["impact_score"], abs=5e-4)


def test_a_server_that_restarts_is_gone_on_with(tmp_path: Path) -> None:
    with opened() as page:
        with running(tmp_path, "digits-vit") as api:
            port = api.base_url.port
            shown(page, api)
            long = {"tolerance": 0.01, "effort": "high", "resolution": 0.001}
            job = api.post("/api/pruning/optimize", json=long, headers={"Prefer": "respond-async"}).json()["id"]
            page.locator("#tab-jobs").click()
            page.wait_for_selector("section[aria-label=Jobs] .state.running")
        slide(page, 10)
        page.wait_for_selector(".problem:has-text('The server does not answer.')")
        chosen = page.locator("section[aria-label='Without the chosen neurons'] h2").text_content()
        with running(tmp_path, "digits-vit", port=port) as api:
            page.wait_for_selector(".problem:has-text('The server does not answer.')", state="detached")
            page.wait_for_selector(".result:not(.old) .score")  # asked again by itself
            assert page.locator("section[aria-label='Without the chosen neurons'] h2").text_content() == chosen
            assert api.get(f"/api/jobs/{job}").json()["state"] == "interrupted"
            page.wait_for_selector("section[aria-label=Jobs] .state.interrupted")
            page.locator("section[aria-label=Jobs] li:has(.interrupted) button:has-text('Run again')").first.click()
            deadline = time.monotonic() + 60
            while not any(
                one["kind"] == "optimize" and one["state"] == "running" for one in api.get("/api/jobs").json()["jobs"]
            ):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            page.wait_for_selector("section[aria-label=Jobs] .state.running")
            page.locator("section[aria-label=Jobs] li:has(.running) button:has-text('Cancel')").click()
            page.wait_for_selector("section[aria-label=Jobs] .state.cancelled")


def test_a_model_that_cannot_be_loaded_is_said_and_another_can_be_taken(tmp_path: Path) -> None:
    with running(tmp_path, "nobody/no-such-model") as api, opened() as page:
        page.goto(str(api.base_url))
        page.wait_for_selector(".problem")
        told = api.get("/api/models/current").json()["error"]
        assert told in page.locator(".problem").text_content()
        page.wait_for_selector("button:has-text('Try again')")
        page.locator("header select").select_option("digits-vit")
        page.wait_for_selector("canvas:not(.waiting)")
        assert page.locator(".problem").count() == 0


def test_a_token_is_asked_for_and_kept_from_scripts(tmp_path: Path) -> None:
    with running(tmp_path, "digits-vit", token="a long secret") as api, opened() as page:  # noqa: S106 (of this test)
        page.goto(str(api.base_url))
        page.locator("input[type=password]").fill("a wrong one")
        page.locator("button:has-text('Enter')").click()
        page.wait_for_selector("form .problem:has-text('A token is needed')")
        page.locator("input[type=password]").fill("a long secret")
        page.locator("button:has-text('Enter')").click()
        page.wait_for_selector("canvas:not(.waiting)")
        slide(page, 10)
        page.wait_for_selector(".result:not(.old) .score")  # its events come over a connection that can send no header
        assert page.evaluate("() => document.cookie") == ""
        page.reload()
        page.wait_for_selector("canvas:not(.waiting)")
        assert api.get("/api/models/current").status_code == 401
