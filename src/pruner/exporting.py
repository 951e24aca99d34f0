"""A model for other runtimes: ONNX, or `torch.export`'s `.pt2`; run there, and compared, before the file gets its name.

The batch size stays free where the model's code lets it. Whether it does is not asked but tried, with another number of
rows than the example has.
"""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import keystr, tree_leaves, tree_leaves_with_path, tree_map, tree_map_only

from pruner.equivalence import answers, batch_of, coarsest_eps, difference
from pruner.staging import replacing
from tracker.admission import unwrapped
from tracker.batches import Batch, evaluating, forward
from tracker.discover import example_call
from tracker.errors import ExportError, StorageError, VerificationError
from tracker.example_inputs import HOW_TO_GIVE_INPUTS, Call, candidate_calls, given_call
from tracker.extras import require

Format = Literal["onnx", "pt2"]
Runner = Callable[[Batch], Sequence[Tensor]]

_HOW_TO_GIVE_INPUTS = HOW_TO_GIVE_INPUTS.replace("discover(model", "export(model, path")
_LARGEST_PROTOBUF = 2**31 - 2**24


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what was measured when it was run.

    `error` is max|a - b| / max|b| in the output that differs most, `output`; `tolerance` is what it was allowed to be.
    `dynamic_batch` says whether the file takes any number of rows; `why_static` is the reason where it does not.
    """

    path: Path
    format: Format
    output: str
    error: float
    tolerance: float
    dynamic_batch: bool
    why_static: str


def export(
    model: nn.Module,
    path: str | PathLike[str],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    format: str | None = None,
    dynamic_batch: bool = True,
) -> Exported:
    """Write `model` to `path` for another runtime, run the file there, and compare it with the model.

    Args:
        model: any model, in evaluation mode for the while; it is left as it was.
        path: of the file. A model of more than 2 GB has its ONNX weights in a second file beside it, `PATH.data`.
        example_inputs, example_kwargs: as for `discover`; by default the call that the model was discovered with, or
            one that it names itself.
        format: "onnx" or "pt2"; by default what the suffix of `path` says.
        dynamic_batch: leave the first dimension of the inputs free where possible.

    Raises:
        ExportError: no format, no inputs, or the model cannot be exported; says why.
        VerificationError: the file computes something else than the model. It is not kept.
        MissingExtraError: ONNX needs the extra "onnx".
        StorageError: the file cannot be written.
    """
    model, target = unwrapped(model), Path(path)
    kind = _format(target, format)
    if kind == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, "onnx")
    _check_dtypes(model, kind)
    batch = _batch(model, given_call(model, example_inputs, example_kwargs))
    dynamic, why_static = None, "it was not asked for"
    if dynamic_batch:
        dynamic, why_static = _free_rows(batch)
    with replacing(target.parent, last=target.name) as folder:
        for shapes in (dynamic, None) if dynamic is not None else (None,):
            try:
                run = _write(model, batch, shapes, folder / target.name, kind)
                output, error, tolerance = _compare(model, run, batch, other_rows=shapes is not None)
            except StorageError:
                raise
            except Exception as failure:
                if shapes is None and isinstance(failure, VerificationError | ExportError):
                    raise
                if shapes is None:
                    raise ExportError(
                        f"{type(model).__name__} cannot be exported to {kind}: {_first_line(failure)}.",
                        hint="The error above says where its code is in the way.",
                    ) from failure
                why_static = _first_line(failure)
                continue
            free = shapes is not None
            break
    return Exported(target, kind, output, error, tolerance, free, "" if free else why_static)


def _format(path: Path, given: str | None) -> Format:
    wanted = given or path.suffix.removeprefix(".")
    if wanted not in get_args(Format):
        raise ExportError(
            f"'{wanted}' is no format to export to ({path.name}).",
            hint='Name the file .onnx or .pt2, or pass format="onnx" or format="pt2".',
        )
    return cast(Format, wanted)


def _check_dtypes(model: nn.Module, kind: Format) -> None:
    narrow = next((p.dtype for p in model.parameters() if p.dtype == torch.bfloat16), None)
    if kind == "onnx" and narrow is not None:
        raise ExportError(
            f"{type(model).__name__} is in {narrow}, which onnxruntime does not compute in on the CPU.",
            hint="Export a copy in another type: export(copy.deepcopy(model).float(), ...).",
        )


def _batch(model: nn.Module, call: Call | None) -> Batch:
    """The inputs to export with: two rows at least, for one row says nothing about more."""
    known = call or example_call(model)
    for candidate in [known] if known is not None else candidate_calls(model):
        try:
            batch = batch_of(candidate, model)
            answers(model, batch)
        except Exception as error:
            if known is None:
                continue
            raise ExportError(
                f"{type(model).__name__} fails on the example inputs: {_first_line(error)}.", hint=_HOW_TO_GIVE_INPUTS
            ) from error
        return batch
    raise ExportError(
        f"No example inputs for {type(model).__name__} are known.",
        hint=_HOW_TO_GIVE_INPUTS,
    )


def _free_rows(batch: Batch) -> tuple[Any, str]:
    """For every input, which of its dimensions are free; None, and why, where there are no rows to be told apart."""
    tensors = _tensors(batch)
    rows = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
    if rows < 2:
        return None, f"the example has {rows} row{'s' * (rows != 1)}; two are needed to see which dimension they are"
    free = Dim("batch", min=1)

    def shape(leaf: Any) -> Any:
        return {0: free} if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == rows else None

    return tree_map(shape, (batch.args, batch.kwargs)), ""


def _write(model: nn.Module, batch: Batch, shapes: Any, path: Path, kind: Format) -> Runner:
    """Write the file, and give what runs it."""
    with _quiet(), evaluating(model):
        dynamic = None if shapes is None else _by_parameter(model, *shapes)
        program = torch.export.export(model, batch.args, dict(batch.kwargs), dynamic_shapes=dynamic)
        if kind == "pt2":
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
            return lambda inputs: _leaves(loaded(*inputs.args, **inputs.kwargs))
        names = list(_outputs(model, batch))
        size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        large = size > _LARGEST_PROTOBUF
        torch.onnx.export(program, f=path, output_names=names, external_data=large, verbose=False)
        return _onnx_runner(path)


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`torch.export` wants the shapes of positional and keyword arguments together, by the names in the signature."""
    return dict(inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments)


def _onnx_runner(path: Path) -> Runner:
    onnxruntime = require("onnxruntime", "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Batch) -> list[Tensor]:
        arrays = [tensor.detach().cpu().numpy() for tensor in _tensors(inputs)]
        if len(arrays) != len(names):
            raise ExportError(
                f"The model reads {len(names)} of its {len(arrays)} inputs ({', '.join(names)}).",
                hint="Leave the others out of the example inputs.",
            )
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(np.asarray(output)) for output in outputs]

    return run


def _compare(model: nn.Module, run: Runner, batch: Batch, *, other_rows: bool) -> tuple[str, float, float]:
    """The output that differs most, by how much, and how much it may: half of the digits of the coarsest type."""
    batches = [batch, *_with_other_rows(batch)] if other_rows else [batch]
    parameters = [tensor for tensor in model.parameters() if tensor.is_floating_point()]
    tolerance = coarsest_eps(parameters or [torch.empty(0)]) ** 0.5
    worst, worst_error = "", -1.0
    for inputs in batches:
        expected, found = _outputs(model, inputs), run(inputs)
        if len(expected) != len(found):
            raise ExportError(f"The file gives {len(found)} outputs, the model {len(expected)}.")
        for (name, output), other in zip(expected.items(), found, strict=True):
            error = difference(other.detach().cpu().to(torch.float64), output.detach().cpu().to(torch.float64))
            if error > worst_error:
                worst, worst_error = name, error
    if worst_error > tolerance:
        raise VerificationError(
            f"The exported {type(model).__name__} computes something else: its {worst} differs by {worst_error:.1e} of "
            f"the largest value, where {tolerance:.1e} is allowed.",
            hint="No file was kept. Look whether the model draws random numbers in evaluation mode.",
        )
    return worst, worst_error, tolerance


def _with_other_rows(batch: Batch) -> Iterator[Batch]:
    """The same inputs with one row more, and with one row alone."""
    rows = _tensors(batch)[0].shape[0]
    for chosen in ([*range(rows), 0], [0]):
        index = torch.tensor(chosen)

        def choose(x: Tensor, index: Tensor = index) -> Tensor:
            return x[index.to(x.device)] if x.dim() and x.shape[0] == rows else x

        args, kwargs = tree_map_only(Tensor, choose, (batch.args, dict(batch.kwargs)))
        yield Batch(args, kwargs)


def _outputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Every tensor that the model returns, under the name that its place gives it."""
    with evaluating(model):
        found = tree_leaves_with_path(forward(model, batch))
    names = {}
    for path, leaf in found:
        if isinstance(leaf, Tensor):
            place = re.sub(r"\W+", "_", keystr(path)).strip("_")
            names[f"output_{place}".strip("_") if not place or place[0].isdigit() else place] = leaf
    return names


def _leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _tensors(batch: Batch) -> list[Tensor]:
    return _leaves((batch.args, dict(batch.kwargs)))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300].rstrip(" .:")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn about their own internals, and log what they cannot find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
