"""Checkpoints from a stranger, and a process killed while it writes one."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruner.apply import prune_
from pruner.checkpoint import load_pruned, save_pruned
from pruner.manifest import MAX_MANIFEST_BYTES
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import CheckpointError, MissingExtraError
from tracker.fingerprint import content_fingerprint


class Target(nn.Module):
    """What the files are loaded into: with integers in a tuple, a dictionary and plain, and things to lay hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)
        self.down.bias = nn.Parameter(torch.zeros(2))
        self.pieces = (8,)
        self.table = {"width": 8}
        self.name = "target"
        self.flag = True
        self.ratio = 0.5

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(x)).split(self.pieces, dim=-1)[0])
        return out


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    model = Target()
    discover(model, torch.randn(2, 3))
    prune_(model, PruningPlan({"up": [0, 5]}))
    save_pruned(model, tmp_path, base="os:abort")
    return tmp_path


def change(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the manifest in place."""
    path = directory / "pruning.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def replace_tensors(directory: Path, content: bytes) -> None:
    """Another tensor file, which the manifest vouches for by size and digest."""
    (directory / "model.safetensors").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(directory, lambda data: data.update(tensor_file=entry))


def tensor_file(directory: Path) -> tuple[dict[str, Any], bytes]:
    content = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, payload: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + payload


def refused(directory: Path, *said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_pruned(directory, Target)
    for words in (str(directory), *said):
        assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_fixture_is_a_good_checkpoint(directory):
    assert load_pruned(directory, Target).pieces == (6,)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 20])
def test_a_file_that_was_cut_off(directory, length):
    replace = (directory / "model.safetensors").read_bytes()[:length]
    (directory / "model.safetensors").write_bytes(replace)
    refused(directory, "model.safetensors", "bytes", f"found {length}")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 10**9, 5000])
def test_a_header_that_claims_to_be_huge_is_not_read(directory, length):
    replace_tensors(directory, struct.pack("<Q", length) + b"{}" + b"\0" * 100)
    start = time.monotonic()
    refused(directory, "model.safetensors", "header of at most 102 bytes", f"found {length}")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"3", b"null", b"{", b"\xff\xfe", b'{"up.weight": 3}', b'{"up.weight": {}}', b"[" * 50_000],
    ids=["empty", "list", "number", "null", "cut off", "no text", "number entry", "empty entry", "deep"],
)
def test_a_header_that_is_none(directory, header):
    replace_tensors(directory, with_header(header, b"\0" * 100))
    refused(directory, "model.safetensors")


def edited(name: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header[name].update(values)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edited("up.weight", dtype="F64"), ("'up.weight'", "expected F32 [6, 3]", "F64")),
        (edited("up.weight", dtype="OBJECT"), ("'up.weight'", "expected F32", "OBJECT")),
        (edited("up.weight", shape=[6, 300]), ("'up.weight'", "expected F32 [6, 3]", "300")),
        (edited("up.weight", shape=[18]), ("'up.weight'", "[6, 3]", "[18]")),
        (edited("up.weight", shape=[-6, -3]), ("'up.weight'", "[-6, -3]")),
        (edited("up.weight", shape="6, 3"), ("'up.weight'", "6, 3")),
        (edited("up.weight", data_offsets=[0, 10**12]), ("cannot be read",)),
        (edited("up.weight", data_offsets=[8, 80]), ("cannot be read",)),
        (edited("up.weight", data_offsets=[-8, 64]), ("cannot be read",)),
        (lambda header: header.pop("up.bias"), ("'up.bias' of the manifest is not in the file",)),
        (lambda header: header.update(extra=header["up.bias"]), ("'extra' in the file is unknown",)),
    ],
    ids=[
        *("wrong type", "unknown type", "larger", "flat", "negative", "text"),
        *("offsets beyond", "offsets overlap", "offsets before", "missing", "extra"),
    ],
)
def test_a_header_that_contradicts_the_manifest_or_itself(directory, edit, said):
    header, payload = tensor_file(directory)
    edit(header)
    replace_tensors(directory, with_header(header, payload))
    refused(directory, "model.safetensors", *said)


def test_more_or_less_data_than_the_shapes_need(directory):
    header, payload = tensor_file(directory)
    for other in (payload + b"\0" * 1000, payload[:-4]):
        replace_tensors(directory, with_header(header, other))
        refused(directory, "bytes of tensors for these shapes", f"found {len(other)}")


def test_one_changed_bit_is_noticed(directory):
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(directory, "model.safetensors", "SHA-256")


def test_a_pickle_is_not_read_as_anything_but_bytes(directory):
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(directory / "exploded"),)

    torch.save(Bomb(), directory / "bomb")
    replace_tensors(directory, (directory / "bomb").read_bytes())
    refused(directory, "model.safetensors")
    assert not (directory / "exploded").exists()


def everywhere(name: str, shape: list[int], dtype: str = "F32") -> Callable[[Path], None]:
    """A tensor that is another in the manifest *and* in the file, of which both tell the same story."""

    def forge(directory: Path) -> None:
        header, payload = tensor_file(directory)
        size = 4 if dtype == "F32" else 8
        count = 1
        for length in shape:
            count *= length
        begin, end = header[name]["data_offsets"]
        payload = payload[:begin] + b"\0" * (count * size) + payload[end:]
        for other, entry in header.items():
            if other != "__metadata__" and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset - (end - begin) + count * size for offset in entry["data_offsets"]]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + count * size]}
        replace_tensors(directory, with_header(header, payload))
        change(directory, lambda data: data["tensors"][name].update(shape=shape, dtype=dtype))

    return forge


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (everywhere("up.weight", [9, 3]), "found a parameter of F32 and (9, 3)"),
        (everywhere("up.weight", [6, 3, 1]), "found a parameter of F32 and (6, 3, 1)"),
        (everywhere("up.weight", [6, 3], "I64"), "found a parameter of I64"),
        (everywhere("up.weight", [6, 3], "C64"), "found a parameter of C64"),
    ],
    ids=["larger", "more dimensions", "integers", "complex"],
)
def test_tensors_that_do_not_fit_into_the_model(directory, forge, said):
    forge(directory)
    refused(directory, "'up.weight'", "expected a parameter of torch.float32 within (8, 3)", said)


def test_a_shape_of_terabytes_is_refused_without_allocating(directory):
    change(directory, lambda data: data["tensors"]["up.weight"].update(shape=[2**40, 2**40]))
    header, payload = tensor_file(directory)
    header["up.weight"]["shape"] = [2**40, 2**40]
    replace_tensors(directory, with_header(header, payload))
    refused(directory, "bytes of tensors for these shapes")


def set_integer(index: int = 0, **values: Any) -> Callable[[dict[str, Any]], Any]:
    """Change an integer in the list and, so that the story holds together, in the history."""

    def edit(data: dict[str, Any]) -> None:
        entry = data["integers"][index]
        for record in data["history"][0]["integers"]:
            if (record["module"], record["path"]) == (entry["module"], entry["path"]):
                record.update({key: value for key, value in values.items() if key in record})
        entry.update(values)

    return edit


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"value": 9}, ("expected at most 8", "found 9")),
        ({"value": 2**39}, ("expected at most 8",)),
        ({"value": -1}, ("integers.0.value", "found -1")),
        ({"value": 2**200}, ("integers.0.value",)),
        ({"value": True}, ("integers.0.value",)),
        ({"value": "3"}, ("integers.0.value",)),
        ({"value": 3.0}, ("integers.0.value",)),
        ({"value": None}, ("integers.0.value",)),
        ({"module": "nowhere"}, ("'nowhere.pieces.0' is no integer attribute",)),
        ({"module": "up.__class__"}, ("no integer attribute",)),
        ({"path": []}, ("integers.0.path",)),
        ({"path": [["pieces"]]}, ("integers.0.path",)),
        ({"path": ["x"] * 9}, ("integers.0.path",)),
        ({"path": ["__class__"]}, ("no integer attribute",)),
        ({"path": ["__dict__", "pieces", 0]}, ("no integer attribute",)),
        ({"path": ["forward", "__globals__"]}, ("no integer attribute",)),
        ({"path": ["forward"]}, ("no integer attribute",)),
        ({"path": ["training"]}, ("no integer attribute",)),
        ({"path": ["_modules", "up"]}, ("no integer attribute",)),
        ({"path": ["_parameters", "weight"]}, ("no integer attribute",)),
        ({"path": ["up", "out_features"]}, ("no integer attribute",)),
        ({"path": ["_forward_hooks", 0]}, ("no integer attribute",)),
        ({"path": ["name"]}, ("no integer attribute", "found str")),
        ({"path": ["name", 0]}, ("no integer attribute",)),
        ({"path": ["flag"]}, ("no integer attribute", "found bool")),
        ({"path": ["ratio"]}, ("no integer attribute", "found float")),
        ({"path": ["pieces"]}, ("no integer attribute", "found tuple")),
        ({"path": ["pieces", 1]}, ("no integer attribute",)),
        ({"path": ["pieces", -1]}, ("no integer attribute",)),
        ({"path": ["pieces", "0"]}, ("no integer attribute",)),
        ({"path": ["table", "height"]}, ("no integer attribute",)),
        ({"path": [0]}, ("no integer attribute",)),
        ({"path": ["new_attribute"]}, ("no integer attribute",)),
    ],
    ids=lambda case: str(next(iter(case.items())))[:40] if isinstance(case, dict) else "",
)
def test_integers_that_are_absurd_or_reach_for_something_else(directory, values, said):
    index = next(
        i
        for i, e in enumerate(json.loads((directory / "pruning.json").read_text())["integers"])
        if "pieces" in e["path"]
    )
    edit = set_integer(index, **values)
    change(directory, edit)
    refused(directory, "pruning.json", *(words.replace("integers.0", f"integers.{index}") for words in said))


def test_an_integer_that_the_history_does_not_know_of(directory):
    extra = {"module": "", "path": ["table", "width"], "value": 1}
    change(directory, lambda data: data["integers"].append(extra))
    refused(directory, "history does not lead to the integers listed")


def test_kept_neurons_that_the_history_does_not_lead_to(directory):
    change(directory, lambda data: data["kept"].update(up=[0, 1, 2, 3, 4, 5]))
    refused(directory, "history does not lead to the kept neurons listed")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data.update(format="other"), "format"),
        (lambda data: data.update(version=2), "version"),
        (lambda data: data.update(version="1"), "version"),
        (lambda data: data.pop("tensors"), "tensors"),
        (lambda data: data.update(model=None), "model"),
        (lambda data: data.update(tensors=[]), "tensors"),
        (lambda data: data["tensor_file"].update(sha256="0"), "sha256"),
        (lambda data: data["tensor_file"].update(bytes=-1), "bytes"),
        (lambda data: data["tensor_file"].update(name="../../etc/passwd"), "tensor_file.name"),
        (lambda data: data.update(file="/etc/passwd"), "file"),
        (lambda data: data["tensors"]["up.weight"].update(file="../other"), "tensors.up.weight.file"),
        (lambda data: data["tensors"]["up.weight"].update(shape=[1] * 17), "tensors.up.weight.shape"),
        (lambda data: data["tensors"]["up.weight"].update(shape=[2**41, 1]), "tensors.up.weight.shape"),
        (lambda data: data["tensors"]["up.weight"].update(kind="code"), "tensors.up.weight.kind"),
        (lambda data: data["tensors"].update({"a" * 2000: data["tensors"]["up.weight"]}), "tensors"),
        (lambda data: data.update(kept={"up": ["x"]}), "kept.up.0"),
        (lambda data: data.update(history=[{}]), "history.0"),
        (lambda data: data["history"][0].update(run="rm"), "history.0.run"),
    ],
)
def test_manifests_that_are_none(directory, edit, said):
    change(directory, edit)
    refused(directory, "pruning.json", said)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 50_000, b'{"format": NaN}', b'{"a":1,"a":2}']
)
def test_manifests_that_are_no_json_object(directory, content):
    (directory / "pruning.json").write_bytes(content)
    refused(directory, "pruning.json")


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("forward@3.0-3.5=8#0123abcd", "is not the one that was pruned"),
        ("__init__@1.0-1.5=8#0123abcd", "is not the one that was pruned"),
        ("forward@3.0-3.5=9000000#0123abcd", "no integer attribute"),
        ("os.system('true')", "no integer attribute"),
        ("absent@3.0-3.5=8#0123abcd", "is not to be found"),
    ],
)
def test_sizes_in_code_go_only_where_the_very_code_is_known(directory, site, said):
    def edit(data: dict[str, Any]) -> None:
        data["integers"].append({"module": "", "path": ["code_sizes", site], "value": 6})
        data["history"][0]["integers"].append({"module": "", "path": ["code_sizes", site], "old": 8, "new": 6})

    change(directory, edit)
    refused(directory, said)


def test_an_origin_that_would_fetch_something_is_refused(directory):
    hostile = {"library": "timm", "name": "hf-hub:evil/model", "options": {}}
    change(directory, lambda data: data.update(origin=hostile))
    with pytest.raises((CheckpointError, MissingExtraError)):
        load_pruned(directory)
    change(directory, lambda data: data.update(origin=hostile | {"library": "os"}))
    refused(directory, "origin.library")


def test_a_tensor_that_is_said_to_lie_apart_must_lie_there(directory):
    change(directory, lambda data: data["tensors"]["up.weight"].update(apart=True))
    refused(directory, "'up.weight' is to lie in buffers.safetensors, of which nothing is said")


def test_a_manifest_of_a_gigabyte_is_not_read(directory):
    with (directory / "pruning.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)  # sparse: it takes no room
    refused(directory, f"{MAX_MANIFEST_BYTES + 1} bytes")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data["tied"].update({"up.weight": "down.weight"}), "'up.weight' is tied"),
        (lambda data: data["tied"].update({"other": "nowhere"}), "'other' is tied to 'nowhere'"),
        (lambda data: data["tied"].update({"other": "up.weight"}), "'other' in the manifest is unknown to the Target"),
        (lambda data: data["tensors"].pop("up.bias"), "up.bias"),
        (lambda data: data["tensors"]["up.bias"].update(kind="buffer"), "expected a parameter"),
        (lambda data: data.update(model="Other"), "expected a Other, found a Target"),
    ],
)
def test_manifests_that_do_not_fit_the_model(directory, edit, said):
    change(directory, edit)
    refused(directory, said)


def test_tying_tensors_of_different_shapes_is_refused(directory):
    header, payload = tensor_file(directory)
    begin, end = header.pop("down.weight")["data_offsets"]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
    replace_tensors(directory, with_header(header, payload[:begin] + payload[end:]))

    def tie(data: dict[str, Any]) -> None:
        del data["tensors"]["down.weight"]
        data["tied"]["down.weight"] = "up.weight"

    change(directory, tie)
    refused(directory, "'down.weight'", "within (2, 8)", "(6, 3)")


def test_a_directory_in_place_of_a_file(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()
    refused(directory, "model.safetensors")


def test_only_one_of_the_two_files(directory):
    (directory / "model.safetensors").unlink()
    refused(directory, "has a pruning.json but no readable model.safetensors")


def test_nothing_that_the_manifest_names_is_imported(directory):
    with pytest.raises(CheckpointError, match="Pass the dense model"):
        load_pruned(directory)  # its base is os:abort, and we are still here


# Forks one child per operation on the file system while a checkpoint is saved (open, rename, remove, mkdir: nothing
# else changes what is on the disk under a name that anybody reads), and ends the child just before it, the hard way.
# Prints which of the two models is loaded from what each child left.
KILLER = """
import os, shutil, sys
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(1)
from pruner.checkpoint import load_pruned, save_pruned
from tracker.errors import NeuronScopeError

def model(value):
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    return layer

def die_at(operation, directory):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(directory) in str(arguments[0]):
            seen += 1
            if seen == operation:
                os._exit(9)
    sys.addaudithook(hook)

def loaded(directory):
    try:
        return str(int(load_pruned(directory, model(0.0)).weight[0, 0].item()))
    except NeuronScopeError as error:
        return type(error).__name__

root, state = Path(sys.argv[1]), sys.argv[2]
template = root / "template"
if state != "empty":
    save_pruned(model(1.0), template)
else:
    template.mkdir()
if state == "killed before":
    pid = os.fork()
    if pid == 0:
        import pruner.staging
        rename = os.replace
        os.replace = lambda old, new: os._exit(0) if Path(new) == template / "model.safetensors" else rename(old, new)
        save_pruned(model(1.0), template)
    os.waitpid(pid, 0)
    assert (template / ".pruning.ready" / "model.safetensors").exists()
operation, status = 0, None
while status != 0:
    operation += 1
    directory = root / str(operation)
    shutil.copytree(template, directory)
    child = os.fork()
    if child == 0:
        die_at(operation, directory)
        save_pruned(model(2.0), directory)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(loaded(directory))
    save_pruned(model(3.0), directory)
    assert loaded(directory) == "3"
    left = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    assert left == {"model.safetensors", "pruning.json"}, left
    shutil.rmtree(directory)
"""


@pytest.mark.parametrize("state", ["empty", "saved before", "killed before"])
def test_a_kill_at_any_point_of_a_save_leaves_the_old_checkpoint_or_the_new_one(state, tmp_path):
    command = [sys.executable, "-c", KILLER, str(tmp_path), state]
    left = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    old = "StorageError" if state == "empty" else "1"
    assert set(left) == {old, "2"}
    before = left.index("2")
    assert set(left[:before]) == {old}
    assert set(left[before:]) == {"2"}
    assert 5 < before < len(left) - 1, "kills on both sides of the commit"


def test_the_digest_is_of_the_weights_that_are_loaded(directory):
    first = content_fingerprint(load_pruned(directory, Target))
    assert content_fingerprint(load_pruned(directory, Target)) == first
