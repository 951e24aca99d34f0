"""JSON from a stranger is read strictly, and refused with the caller's kind of error."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.errors import NeuronScopeError, RecommendationError, StorageError
from tracker.files import read_json


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "line 1 column 1"),
        (b'{"prune": [1, 2', "line 1 column 16"),
        (b'{"layer": "conv1", "neuron": 3, "neuron": 4}', "'neuron' occurs twice"),
        (b'{"score": NaN}', "NaN is not a JSON number"),
        (b'{"score": -Infinity}', "-Infinity is not a JSON number"),
        (b"\xff\xfe{\x00}\x00", "utf-8"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion"),
        (b"1" * 100_000, "digits"),
    ],
)
def test_malformed_json_names_file_content_and_place(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "recommendations.json"
    path.write_bytes(data)
    with pytest.raises(RecommendationError, match=complaint) as caught:
        read_json(path, what="recommendations", error=RecommendationError)
    assert str(path) in str(caught.value)
    assert "recommendations as JSON" in str(caught.value)


@given(data=st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "any.json"
    path.write_bytes(data)
    with suppress(NeuronScopeError):
        read_json(path, what="anything", error=StorageError)
    assert path.read_bytes() == data
