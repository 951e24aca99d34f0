"""The JavaScript of the NeuronScope guide as it stands, in a real browser, against a running server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.neuronscope.server.running import running

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")

SNIPPET = """
// Get weight analysis
const weightAnalysis = await fetch('/api/pruning/weight-analysis')
  .then(response => response.json());

console.log(`Overall sparsity: ${weightAnalysis.overall_sparsity}`);

// Get pruning candidates
const candidates = await fetch('/api/pruning/candidates?threshold=10.0')
  .then(response => response.json());

console.log(`Found ${candidates.total_candidates} candidates`);

// Analyze pruning impact
const impact = await fetch('/api/pruning/impact-analysis', {
  method: 'POST',
  headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({
    layer_index: 0,
    neuron_indices: [0, 1, 2],
    input_text: "Hello world"
  })
}).then(response => response.json());

console.log(`Impact score: ${impact.impact_score}`);
console.log(`Safe to prune: ${impact.safe_to_prune}`);
"""

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture
def page() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS.split())
        yield browser.new_page()
        browser.close()


@pytest.mark.browser
def test_the_snippets_say_what_the_guide_says(page: object, tmp_path: Path) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))  # type: ignore[attr-defined]
    with running(tmp_path) as api:
        page.goto(str(api.base_url))  # type: ignore[attr-defined]
        page.evaluate(f"async () => {{ {SNIPPET} }}")  # type: ignore[attr-defined]
        asked = {"layer_index": 0, "neuron_indices": [0, 1, 2], "input_text": "Hello world"}
        score = api.post("/api/pruning/impact-analysis", json=asked).json()["impact_score"]
    assert said == ["Overall sparsity: 0", "Found 4608 candidates", f"Impact score: {score}", "Safe to prune: true"]
