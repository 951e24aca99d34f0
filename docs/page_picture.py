"""Draws the pictures of the page in docs/: its main states, as a person sees them. `make picture`."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.neuronscope.server.browser import opened  # noqa: E402
from tests.neuronscope.server.running import running  # noqa: E402
from tests.neuronscope.server.training_run import trained  # noqa: E402

LAPTOP = {"width": 1280, "height": 940}


def deep() -> Any:
    """A vision transformer of 126 blocks: 32,256 neurons, random weights."""
    import transformers

    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=126,
            num_attention_heads=2,
            num_labels=10,
        )
    )


def selection(page: Any) -> None:
    """A tenth of each layer is chosen, and what the model says without it."""
    page.locator("input[type=range]").first.fill("10")
    page.wait_for_selector(".result:not(.old) .score")
    page.wait_for_selector("section[aria-label=Overview] dd:has-text(' ms on')")


def neuron(page: Any) -> None:
    """What one neuron does."""
    page.locator("#tab-table").click()
    page.locator("input[name=place]").fill("3, 17")
    page.locator("button:has-text('Go')").click()
    page.locator("button:has-text('What does it do?')").click()
    page.wait_for_selector(".details")


def search(page: Any) -> None:
    """The Pareto front of a search."""
    page.locator("#tab-search").click()
    page.locator("section[aria-label=Search] input").fill("0.00003")
    page.locator("section[aria-label=Search] button.main").click()
    page.wait_for_selector(".points li", timeout=600_000)
    page.locator(".points button").nth(1).click()
    page.wait_for_selector(".result:not(.old) .score")


def training(page: Any) -> None:
    """A training run in its fifth epoch."""
    page.locator("#tab-training").click()
    page.wait_for_selector(".past canvas:not(.waiting)")
    page.locator("input.epochs").fill("4")
    page.locator(".past canvas").click(position={"x": 60, "y": 30})
    page.wait_for_selector("figcaption:has-text('layer 0')")


STATES: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "page": (selection, "light", "stdlib-gpt"),
    "page_neuron": (neuron, "dark", "stdlib-gpt"),
    "page_training": (training, "dark", "stdlib-gpt"),
    "page_search": (search, "light", "digits-vit"),
}


def main(names: list[str]) -> None:
    """Draw those that are named; by default all."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with running(folder, history=trained(folder)) as api:
            for name, (act, scheme, model) in STATES.items():
                if not names or name in names:
                    api.post("/api/models/switch", json={"model_name": model})
                    with opened(viewport=LAPTOP, color_scheme=scheme) as page:
                        page.goto(str(api.base_url))
                        page.wait_for_selector("canvas:not(.waiting)")
                        act(page)
                        page.screenshot(path=ROOT / "docs" / f"{name}.png", full_page=name != "page")
        if not names or "page_deep" in names:
            with (
                running(folder / "deep", "docs.page_picture:deep") as api,
                opened(viewport={"width": 2560, "height": 1440}, color_scheme="light") as page,
            ):
                page.goto(str(api.base_url))
                page.wait_for_selector("canvas:not(.waiting)", timeout=300_000)
                page.locator("input[type=range]").first.fill("20")
                page.wait_for_selector(".result:not(.old) .score", timeout=300_000)
                page.screenshot(path=ROOT / "docs" / "page_deep.png")


if __name__ == "__main__":
    main(sys.argv[1:])
