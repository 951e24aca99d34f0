import pytest
import torch
from torch import nn

from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.loader import MultiModelLoader
from neuronscope.quantized import dequantized
from neuronscope.weights import WeightAnalyzer
from tracker.errors import MissingExtraError

transformers = pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore")
def test_what_is_quantised_is_judged_by_the_numbers_it_stands_for() -> None:
    pytest.importorskip("torchao")  # not installed for tests: every process that uses transformers would import it
    model, tokenizer = MultiModelLoader(use_quantization=True).load_model("stdlib-llama")
    linear = model.model.layers[2].mlp.up_proj
    assert type(linear.weight).__module__.startswith("torchao")
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied, and still one
    ids = tokenizer("import os", return_tensors="pt")["input_ids"]
    plain = dequantized(model)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    assert type(linear.weight).__module__.startswith("torchao")  # the model itself stays
    magnitudes = WeightAnalyzer(model).get_weight_magnitudes("model.layers.2.mlp.up_proj")
    gate = model.model.layers[2].mlp.gate_proj
    both = torch.cat([one.weight.dequantize() for one in (linear, gate)], 1)
    torch.testing.assert_close(torch.from_numpy(magnitudes), both.double().abs().mean(1), rtol=1e-4, atol=1e-6)
    dense = PruningImpactAnalyzer(*MultiModelLoader().load_model("stdlib-llama"))
    chosen = [(layer, neuron) for layer in range(6) for neuron in range(40)]
    quantised = PruningImpactAnalyzer(model, tokenizer).simulate(chosen, "import os\nimport sys")
    expected = dense.simulate(chosen, "import os\nimport sys")
    assert quantised.impact_score == pytest.approx(expected.impact_score, rel=0.1)


def test_a_plain_model_is_itself_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    assert dequantized(model) is model
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(MissingExtraError, match=r"neuronscope\[quantization\]"):
        MultiModelLoader(use_quantization=True).load_model("digits-vit")
    assert reference.load("digits-vit")
