"""A fixed part of the zoo, through the same functions as the whole of it."""

import pytest
from benchmarks.zoo import ours
from benchmarks.zoo.child import run_each
from benchmarks.zoo.entries import Entry, entries_of
from benchmarks.zoo.judgement import miss

PLAIN = """
small_cnn residual_cnn depthwise_cnn unet vae dcgan_generator pixel_shuffle in_place raw_parameters lstm_cells
handwritten_attention einsum_attention tied_embeddings gated_mlp squeeze_excitation dense_block used_twice
shared_module dictionaries
""".split()
TRANSFORMERS = """
GPT2LMHeadModel LlamaForCausalLM BertModel T5ForConditionalGeneration ViTForImageClassification
ResNetForImageClassification
""".split()


def chosen(library: str, names: list[str]) -> list[Entry]:
    entries = {entry.name: entry for entry in entries_of(library)}
    return [entries[name] for name in names]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("library", "names"), [("plain", PLAIN), ("transformers", TRANSFORMERS)])
def test_models_of_the_zoo_are_pruned_exactly(library: str, names: list[str]) -> None:
    for entry, facts in run_each(chosen(library, names), ours.measure, jobs=1):
        record = {"tool": "ours", **facts}
        assert miss(record) is None, f"{entry.key}: {miss(record)}"
        assert record["parameters_after"] < record["parameters"], entry.key
        assert not record["attention"] or "attention" in record["exact"], f"{entry.key}: heads stay"


def test_names_are_unique_and_say_what_they_are_given() -> None:
    for library in ("plain", "transformers"):
        entries = entries_of(library)
        assert len({entry.key for entry in entries}) == len(entries)
        assert all(entry.given and entry.module for entry in entries)
    assert len(entries_of("transformers")) >= 50
