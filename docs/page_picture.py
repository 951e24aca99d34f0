"""Draws docs/page.png: the page with a tenth of the neurons chosen. `make picture`."""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.neuronscope.server.browser import opened  # noqa: E402
from tests.neuronscope.server.running import running  # noqa: E402

if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder)) as api,
        opened(viewport={"width": 1280, "height": 940}, color_scheme="light") as page,
    ):
        page.goto(str(api.base_url))
        page.wait_for_selector("canvas:not(.waiting)")
        page.locator("input[type=range]").fill("10")
        page.wait_for_selector(".result:not(.old) .score")
        page.screenshot(path=ROOT / "docs" / "page.png")
