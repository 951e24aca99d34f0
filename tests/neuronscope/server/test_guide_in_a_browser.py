"""The JavaScript of the NeuronScope guide as it stands, in a real browser, against a running server."""

from pathlib import Path

import pytest
from tests.neuronscope.server.browser import opened
from tests.neuronscope.server.running import running

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


@pytest.mark.browser
def test_the_snippets_say_what_the_guide_says(tmp_path: Path) -> None:
    with running(tmp_path) as api, opened() as page:
        page.goto(str(api.base_url))
        page.wait_for_selector("canvas:not(.waiting)")
        page.evaluate(f"async () => {{ {SNIPPET} }}")
        asked = {"layer_index": 0, "neuron_indices": [0, 1, 2], "input_text": "Hello world"}
        score = api.post("/api/pruning/impact-analysis", json=asked).json()["impact_score"]
        said = ["Overall sparsity: 0", "Found 4608 candidates", f"Impact score: {score}", "Safe to prune: true"]
        assert page.said == said
