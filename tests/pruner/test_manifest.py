import pytest

from pruner.manifest import LayerRecord, PruningRecord, kept_neurons


def record(**layers: tuple[int, list[int]]) -> PruningRecord:
    entries = {name: LayerRecord(neurons=size, removed=gone) for name, (size, gone) in layers.items()}
    return PruningRecord(fingerprint="a", result="b", layers=entries, integers=[], provenance={})


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        ([], {}),
        ([record(fc=(4, [1]))], {"fc": [0, 2, 3]}),
        ([record(fc=(5, [0])), record(fc=(4, [0, 3]))], {"fc": [2, 3]}),
        ([record(fc=(3, [0])), record(conv=(2, [1]))], {"fc": [1, 2], "conv": [0]}),
    ],
)
def test_what_stays_is_told_by_its_numbers_in_the_dense_model(history, kept):
    assert kept_neurons(history) == kept
