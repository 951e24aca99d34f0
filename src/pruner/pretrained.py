"""Checkpoints that `from_pretrained` reads with nothing of ours: the files beside the tensors of a transformers model.

A pruned model can be one if some configuration of its class builds its very widths. That configuration is searched for
(`pruner.config_search`) and believed only after transformers itself has loaded the written directory: same tensors, and
the same outputs. Where there is none, `config.json` keeps the dense widths and makes `from_pretrained` refuse with a
line that says how to load the model, rather than fill it with random weights.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruner.config_search import Place, Search, Sizes
from pruner.equivalence import coarsest_eps, difference, rounding
from pruner.likeness import difference_between
from pruner.manifest import IntegerEntry
from pruner.origin import Origin, config_object, configuration, transformers_class
from pruner.skeleton import named_tensors, stored_names
from tracker.errors import CheckpointError, NeuronScopeError
from tracker.extras import require
from tracker.files import write_text
from tracker.rewriting import CODE_SIZES, author_class
from tracker.sizes import read_path

CONFIG = "config.json"
_MOST_TRIED = 6
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt "
    "spiece.model sentencepiece.bpe.model tokenizer.model chat_template.jinja chat_template.json "
    "preprocessor_config.json processor_config.json"
).split()


def is_pretrained(model: nn.Module) -> bool:
    """Whether this is a model of transformers or built on its classes."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def write_pretrained(
    folder: Path,
    model: nn.Module,
    origin: Origin | None,
    integers: Sequence[IntegerEntry],
    tokenizer: Any,
    base: str | None,
) -> str:
    """Write what transformers reads beside the tensors, which lie in `folder` already.

    Returns "" where transformers then loads the very model, which was tried, else why it is told not to.
    """
    _write_tokenizer(folder, model, tokenizer, base)
    if transformers_class(model) is None:
        why_not = f"{type(model).__name__} is not a class of transformers itself"
    elif origin is None:
        why_not = "its configuration does not build its dense architecture"
    else:
        why_not, configurations = "", _search(model, origin, integers)
        for options in islice(configurations, _MOST_TRIED):
            _write_configuration(folder, model, options)
            why_not = _why_not_the_same(folder, model)
            if not why_not:
                return ""
        why_not = why_not or configurations.reason
    _write_configuration(folder, model, None, why_not)
    return why_not


def _search(model: nn.Module, origin: Origin, integers: Sequence[IntegerEntry]) -> Search:
    """The configurations from which the model's own class builds the model's sizes as they are now."""
    kind = author_class(type(model))
    target = _sizes(model, integers)

    def build(options: Mapping[str, Any]) -> Sizes | None:
        try:
            with _quiet(), torch.device("meta"):
                sizes = _sizes(kind(config_object(kind, options)), integers)
        except Exception:  # noqa: BLE001 (a configuration that is tried may be refused in any way)
            return None
        return sizes if sizes.keys() == target.keys() else None

    return Search(origin.options, target, build, _implied(model))


def _write_configuration(folder: Path, model: Any, options: Mapping[str, Any] | None, why_not: str = "") -> None:
    """Write `config.json`, and `generation_config.json` for a model that generates.

    Without `options` the configuration is the dense one and refuses to be loaded, and says `why_not`.
    """
    config = config_object(author_class(type(model)), options or configuration(model))
    config.architectures = [type(model).__name__]
    config.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if options is None:
        config.transformers_weights = (
            f"This model was pruned, and {why_not}. Load it with: "
            "import pruner; model = pruner.load_pruned('THIS_DIRECTORY')  # pip install neuronscope"
        )
    write_text(folder / CONFIG, config.to_json_string())
    generation = getattr(model, "generation_config", None)
    if generation is not None and model.can_generate():
        write_text(folder / "generation_config.json", generation.to_json_string())


def _write_tokenizer(folder: Path, model: Any, tokenizer: Any, base: str | None) -> None:
    """Write the tokenizer or processor that is given, else copy the files of the dense model's, where they are at hand.

    They are at hand in the directory that it was loaded from, or in the local cache of the hub; nothing is downloaded.
    """
    if tokenizer is not None:
        if not hasattr(tokenizer, "save_pretrained"):
            raise CheckpointError(
                f"The tokenizer is a {type(tokenizer).__name__}, which has no save_pretrained.",
                hint="Pass a tokenizer or a processor of transformers.",
            )
        tokenizer.save_pretrained(folder)
        return
    for source in (base, getattr(model.config, "_name_or_path", None)):
        found = [path for name in TOKENIZER_FILES if source and (path := _at_hand(source, name))]
        for path in found:
            shutil.copyfile(path, folder / path.name)
        if found:
            return


def _why_not_the_same(folder: Path, model: Any) -> str:
    """Load `folder` as anybody would, and compare; "" where it is the same model, else what is different."""
    transformers = require("transformers", "transformers")
    kind: Any = author_class(type(model))
    dtype = {"dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype": "auto"}
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            loaded, info = kind.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                attn_implementation=getattr(model.config, "_attn_implementation", None),
                **dtype,
            )
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the reason)
        return f"transformers does not load it ({_first_line(error)})"
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            return f"transformers reports {what.replace('_', ' ')}: {sorted(map(str, info[what]))[0]}"
    different = _other_tensor(model, loaded) or difference_between(model, loaded)
    return f"{different} when transformers loads it" if different else ""


def _other_tensor(model: nn.Module, loaded: nn.Module) -> str:
    """The first tensor that differs. Buffers that files leave out may differ by rounding, and are then made equal."""
    own, theirs = dict(named_tensors(model)), dict(named_tensors(loaded))
    if own.keys() != theirs.keys():
        return f"only one has '{min(own.keys() ^ theirs.keys())}'"
    stored = stored_names(model)
    for name, tensor in own.items():
        other = theirs[name]
        if tensor.shape != other.shape:
            return f"'{name}' is {tuple(other.shape)}, not {tuple(tensor.shape)},"
        tensor = tensor.detach().to("cpu")
        if name in stored:
            if tensor.dtype != other.dtype or not torch.equal(tensor, other.detach()):
                return f"'{name}' has other values"
        elif not _close(other, tensor):
            return f"'{name}', which files leave out, has other values"
        elif tensor.dtype != other.dtype or not torch.equal(tensor, other):
            owner, _, leaf = name.rpartition(".")
            setattr(loaded.get_submodule(owner), leaf, tensor)
    return ""


def _close(one: Tensor, other: Tensor) -> bool:
    if not other.is_floating_point() or not one.is_floating_point():
        return bool(torch.equal(one, other))
    return difference(one, other) <= rounding(coarsest_eps((one, other)))


def _sizes(model: nn.Module, integers: Sequence[IntegerEntry]) -> dict[Place, int]:
    sizes: dict[Place, int] = {}
    for name, tensor in named_tensors(model):
        sizes.update({(name, dim): size for dim, size in enumerate(tensor.shape)})
    for entry in integers:
        path = tuple(entry.path)
        if path[0] == CODE_SIZES:  # what the author's code makes of another configuration shows in the outputs
            continue
        with suppress(KeyError, AttributeError, LookupError):
            sizes[entry.module, path] = int(read_path(model.get_submodule(entry.module), path))
    return sizes


def _implied(model: nn.Module) -> dict[str, int]:
    """Integers that all modules which keep one under the same name agree on, and that only pruning made special."""
    found: dict[str, set[int]] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) is int and value > 1 and not name.startswith("_"):
                found.setdefault(name, set()).add(value)
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def _at_hand(source: str, name: str) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        cached = require("huggingface_hub", "transformers").try_to_load_from_cache(source, name)
    except ValueError:  # no name of a repository
        return None
    return Path(cached) if isinstance(cached, str) else None


def _first_line(error: Exception) -> str:
    if isinstance(error, NeuronScopeError):
        return error.what
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(" .:")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its warnings about configurations that are only tried, and without its bars."""
    logging = sys.modules["transformers"].logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
