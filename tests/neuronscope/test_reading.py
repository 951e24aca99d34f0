import pytest
import torch
from tests.neuronscope.test_impact import Letters
from torch import Tensor

from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from tracker.errors import DataError

transformers = pytest.importorskip("transformers")

TEXTS = ["import os\nimport sys\n", "def read(path):\n    with open(path) as file:\n"]


@pytest.fixture(scope="module")
def analyzer() -> PruningImpactAnalyzer:
    loaded = reference.load("stdlib-gpt")
    return PruningImpactAnalyzer(loaded.model, loaded.tokenizer)


def test_a_text_goes_on_as_the_model_alone_says_and_as_it_does_without(analyzer: PruningImpactAnalyzer) -> None:
    chosen = [(layer, neuron) for layer in range(6) for neuron in range(400)]
    (one,) = analyzer.continuations(chosen, TEXTS[1], tokens=6)
    model, tokenizer = analyzer.model, analyzer.tokenizer
    ids = tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]

    def greedy() -> str:
        own = ids
        with torch.no_grad():
            for _ in range(6):
                own = torch.cat([own, model(own).logits[:, -1:].argmax(-1)], 1)
        return str(tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True))

    assert one["before"] == greedy()
    handles = [
        block.mlp.c_proj.register_forward_pre_hook(
            lambda _, args: (torch.cat([torch.zeros_like(args[0][..., :400]), args[0][..., 400:]], -1),)
        )
        for block in model.transformer.h
    ]
    assert one["after"] == greedy() != one["before"]
    for handle in handles:
        handle.remove()


def test_top_tokens_are_where_the_neuron_is_loudest(analyzer: PruningImpactAnalyzer) -> None:
    found = analyzer.top_tokens(2, 17, TEXTS, count=5)
    heard: list[Tensor] = []
    handle = analyzer.model.transformer.h[2].mlp.c_proj.register_forward_pre_hook(
        lambda _, args: heard.append(args[0][0, :, 17])
    )
    rows = [analyzer.tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        for row in rows:
            analyzer.model(torch.tensor([row]))
    handle.remove()
    everywhere = [(float(x), number, place) for number, own in enumerate(heard) for place, x in enumerate(own)]
    loudest = sorted(everywhere, key=lambda one: -abs(one[0]))[:5]
    assert [(one["text"], one["position"]) for one in found] == [(number, place) for _, number, place in loudest]
    assert [one["activation"] for one in found] == pytest.approx([x for x, _, _ in loudest], rel=1e-4)
    for one in found:
        assert one["token"] == analyzer.tokenizer.decode([rows[one["text"]][one["position"]]])
        assert one["before"] + one["token"] + one["after"] in TEXTS[one["text"]]


def test_what_writes_no_texts_says_so() -> None:
    loaded = reference.load("digits-vit")
    with pytest.raises(DataError, match="does not write texts"):
        PruningImpactAnalyzer(loaded.model, Letters()).continuations([(0, 1)], "a")
