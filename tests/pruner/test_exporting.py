"""Exports, run where they are to run."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pruner import small_cnn
from torch import Tensor, nn

import pruner
from pruner.exporting import Exported, export
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import ExportError, MissingExtraError, StorageError, VerificationError


class Named(nn.Module):
    """Takes keyword arguments and gives names; one of its inputs is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, offset: Tensor | None = None, double: bool = False) -> dict[str, Tensor]:
        y = self.down(torch.relu(self.up(x)))
        y = y if offset is None else y + offset
        return {"logits": y * 2 if double else y, "largest": y.argmax(-1)}


def pruned_cnn() -> nn.Module:
    model = small_cnn.model()
    neurons = discover(model, small_cnn.images())
    pruner.prune_(model, PruningPlan({group.name: range(group.size // 2) for group in neurons if group.exact}))
    return model


def run_onnx(path: Path, **inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return found


def test_a_pruned_model_as_pt2(tmp_path):
    model = pruned_cnn().train()
    written = export(model, tmp_path / "model.pt2")
    assert isinstance(written, Exported)
    assert (written.format, written.output, written.dynamic_batch, written.why_static) == ("pt2", "output", True, "")
    assert 0 <= written.error <= written.tolerance < 1e-3
    assert model.training
    call: Any = torch.export.load(tmp_path / "model.pt2").module()
    x = small_cnn.images(5)
    assert torch.allclose(call(x), model.eval()(x), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_names_of_inputs_and_outputs_and_any_number_of_rows_in_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    model, x, offset = Named().eval(), torch.randn(2, 4), torch.randn(2, 3)
    written = export(model, tmp_path / "model.onnx", x, {"offset": offset, "double": True})
    assert written.dynamic_batch, written.why_static
    assert written.output in ("logits", "largest")
    x, offset = torch.randn(7, 4), torch.randn(7, 3)
    logits, largest = run_onnx(tmp_path / "model.onnx", x=x, offset=offset)
    expected = model(x, offset=offset, double=True)
    assert np.allclose(logits, expected["logits"].detach().numpy(), atol=1e-5)
    assert (largest == expected["largest"].numpy()).all()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Fixed(nn.Module):
    """Writes the number of rows into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x).reshape(2, 2)
        return out


def test_where_the_rows_cannot_be_free_they_are_not_and_the_reason_is_given(tmp_path):
    written = export(Fixed(), tmp_path / "model.pt2", torch.randn(2, 3))
    assert not written.dynamic_batch
    assert written.why_static
    single = export(nn.Linear(3, 2), tmp_path / "model.pt2", torch.randn(1, 3))
    assert "the example has 1 row;" in single.why_static
    asked = export(nn.Linear(3, 2), tmp_path / "model.pt2", torch.randn(2, 3), dynamic_batch=False)
    assert (asked.dynamic_batch, asked.why_static) == (False, "it was not asked for")


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_text("the old one")
    real = torch.export.export

    def wrong(model: nn.Module, *args: Any, **options: Any) -> Any:
        other = nn.Linear(3, 2)
        return real(other, *args, **{**options, "dynamic_shapes": None})

    monkeypatch.setattr(torch.export, "export", wrong)
    with pytest.raises(VerificationError, match="computes something else: its output differs by"):
        export(nn.Linear(3, 2), tmp_path / "model.pt2", torch.randn(2, 3))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.pt2": "the old one"}


def test_code_that_cannot_be_exported_is_named(tmp_path):
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x) if x.sum() > 0 else -self.fc(x)
            return out

    with pytest.raises(ExportError, match="Looking cannot be exported to pt2: "):
        export(Looking(), tmp_path / "model.pt2", torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_formats_go_by_suffix_or_by_name(tmp_path):
    model, x = nn.Linear(3, 2), torch.randn(2, 3)
    assert export(model, tmp_path / "model.pt2", x, format="pt2").format == "pt2"
    for path, options in (("model.tflite", {}), ("model", {}), ("model.pt2", {"format": "torchscript"})):
        with pytest.raises(ExportError, match=r"Name the file \.onnx or \.pt2"):
            export(model, tmp_path / path, x, **options)


def test_inputs_that_are_missing_or_wrong_are_named(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.fc(x) + y
            return out

    with pytest.raises(
        ExportError, match=r"No example inputs for Two are known.*export\(model, path, example_inputs\)"
    ):
        export(Two(), tmp_path / "model.pt2")
    with pytest.raises(ExportError, match="Two fails on the example inputs"):
        export(Two(), tmp_path / "model.pt2", (torch.randn(2, 3), torch.randn(5, 5)))


def test_onnx_needs_its_extra_and_a_type_that_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match=r"bfloat16.*\.float\(\)"):
        export(nn.Linear(3, 2).bfloat16(), tmp_path / "model.onnx", torch.randn(2, 3))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"neuronscope\[onnx\]"):
        export(nn.Linear(3, 2), tmp_path / "model.onnx", torch.randn(2, 3))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        export(nn.Linear(3, 2), tmp_path / "file" / "model.pt2", torch.randn(2, 3))


def test_each_type_is_compared_in_its_own_tolerance(tmp_path):
    exact = export(nn.Linear(3, 2).double(), tmp_path / "model.pt2", torch.randn(2, 3))
    coarse = export(nn.Linear(3, 2).bfloat16(), tmp_path / "model.pt2", torch.randn(2, 3))
    assert exact.tolerance < 1e-7 < 1e-2 < coarse.tolerance
