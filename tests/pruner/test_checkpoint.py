import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.pruner.before_and_after import everything
from tests.pruner.small_models import CASES, ResidualCNN, TiedTransformer, case, randomised
from torch import Tensor, nn

from pruner.apply import prune_
from pruner.checkpoint import load_pruned, save_pruned
from pruner.equivalence import answers
from pruner.lineage import pruning_history
from pruner.manifest import read_manifest
from pruner.plan import PruningPlan
from tracker.batches import Batch
from tracker.discover import discover
from tracker.errors import CheckpointError, StorageError
from tracker.fingerprint import content_fingerprint, structure_fingerprint
from tracker.neuron_map import NeuronMap
from tracker.rewriting import CODE_SIZES


def half(neurons: NeuronMap) -> PruningPlan:
    return PruningPlan({group.name: range(group.size // 2) for group in neurons if group.exact})


def pruned_case(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor]:
    """The dense model, a pruned copy, and inputs."""
    dense, x = case(name, dtype)
    model = copy.deepcopy(dense)
    prune_(model, half(discover(model, x)))
    return dense, model, x


def same_answers(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    here, there = answers(one, Batch((x,))), answers(other, Batch((x,)))
    return here.keys() == there.keys() and all(torch.allclose(here[name], there[name]) for name in here)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_loaded_from_any_form_of_the_dense_model(name, dtype, tmp_path):
    dense, model, x = pruned_case(name, dtype)
    save_pruned(model, tmp_path)
    before = everything(dense)
    with torch.device("meta"):
        weightless = CASES[name].build()
    for source in (dense, weightless, CASES[name].build, model):
        loaded = load_pruned(tmp_path, source)
        assert content_fingerprint(loaded) == content_fingerprint(model)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
        assert same_answers(loaded, model, x)
        assert not loaded.training
    assert everything(dense) == before


def test_tied_and_shared_parts_stay_tied_and_shared(tmp_path):
    _, model, _ = pruned_case("transformer")
    save_pruned(model, tmp_path)
    loaded = load_pruned(tmp_path, TiedTransformer)
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.first is loaded.second
    assert "head.weight" not in load_file(tmp_path / "model.safetensors")


def test_weights_tied_after_building_are_tied_again_and_untied_ones_are_not(tmp_path):
    def build() -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    model = build()
    model[1].weight = model[0].weight
    save_pruned(model, tmp_path / "tied")
    loaded = load_pruned(tmp_path / "tied", build)
    assert loaded[1].weight is loaded[0].weight
    plain = build()
    save_pruned(plain, tmp_path / "untied")
    loaded = load_pruned(tmp_path / "untied", model)
    assert loaded[1].weight is not loaded[0].weight
    assert content_fingerprint(loaded) == content_fingerprint(plain)
    assert model[1].weight is model[0].weight


def test_buffers_that_a_state_dict_leaves_out_come_back_cut(tmp_path):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("scale", torch.ones(6), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(torch.relu(self.one(x)) * self.scale)
            return out

    model = Scaled()
    model.scale.copy_(torch.arange(6.0))
    discover(model, torch.randn(2, 3))
    prune_(model, PruningPlan({"one": [0, 2]}))
    save_pruned(model, tmp_path)
    loaded = load_pruned(tmp_path, Scaled)
    assert loaded.scale.tolist() == [1.0, 3.0, 4.0, 5.0]
    assert "scale" not in loaded.state_dict()


def test_a_model_pruned_twice_is_loaded_at_once_and_can_be_pruned_and_saved_again(tmp_path):
    dense, x = case("transformer")
    model = copy.deepcopy(dense)
    for gone in ([1, 3], [0, 2]):
        discover(model, x)
        prune_(model, PruningPlan({"first.up": gone}))
    save_pruned(model, tmp_path / "twice")
    manifest = read_manifest(tmp_path / "twice")
    assert manifest.kept == {"first.up": [2, 5, 6, 7]}
    assert manifest.dense_fingerprint == structure_fingerprint(dense)
    assert manifest.fingerprint == structure_fingerprint(model)
    loaded = load_pruned(tmp_path / "twice", dense)
    assert loaded.first.pieces == (4, 4)
    assert pruning_history(loaded) == pruning_history(model)
    discover(loaded, x)
    prune_(loaded, PruningPlan({"first.up": [0], "attention.qkv": [1]}))
    save_pruned(loaded, tmp_path / "thrice")
    again = load_pruned(tmp_path / "thrice", dense)
    assert again.first.pieces == (3, 3)
    assert read_manifest(tmp_path / "thrice").kept == {"first.up": [5, 6, 7], "attention.qkv": [0, 2]}
    assert same_answers(again, loaded, x)


def test_a_copy_of_a_pruned_model_is_saved_as_well_as_the_model(tmp_path):
    dense, model, x = pruned_case("transformer")
    save_pruned(copy.deepcopy(model), tmp_path)
    assert same_answers(load_pruned(tmp_path, dense), model, x)


def test_a_model_that_was_never_pruned_is_saved_too(tmp_path):
    dense, x = case("cnn")
    save_pruned(dense, tmp_path)
    assert read_manifest(tmp_path).kept == {}
    assert same_answers(load_pruned(tmp_path, ResidualCNN), dense, x)


def test_base_and_provenance_are_kept_and_only_used_through_the_resolver(tmp_path):
    _, model, x = pruned_case("cnn")
    save_pruned(model, tmp_path, base="my.models:build", provenance={"accuracy": 0.97})
    manifest = read_manifest(tmp_path)
    assert (manifest.base, manifest.provenance) == ("my.models:build", {"accuracy": 0.97})
    with pytest.raises(CheckpointError, match=r"no `resolve` was given.*load_pruned\(directory, model="):
        load_pruned(tmp_path)
    asked = []

    def resolve(base: str) -> nn.Module:
        asked.append(base)
        return ResidualCNN()

    assert same_answers(load_pruned(tmp_path, resolve=resolve), model, x)
    assert set(asked) == {"my.models:build"}
    save_pruned(model, tmp_path)
    with pytest.raises(CheckpointError, match="does not say how to build it"):
        load_pruned(tmp_path, resolve=resolve)


def test_provenance_that_is_no_json_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        save_pruned(nn.Linear(2, 2), tmp_path / "new", provenance={"loss": float("nan")})
    assert not (tmp_path / "new").exists()


class Stubborn(nn.Module):
    """Looks at values while it is built, and keeps a tensor and a second name of its weight to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
        self.offset = torch.arange(3.0)
        self.again = [self.fc.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.again[0].T + self.offset * self.rates[1]


def test_a_model_that_cannot_be_built_without_values_is_built_with_them(tmp_path):
    model, x = Stubborn(), torch.randn(2, 3)
    save_pruned(model, tmp_path)
    state = torch.get_rng_state()
    for source in (Stubborn, Stubborn()):
        loaded = load_pruned(tmp_path, source)
        assert loaded.again[0] is loaded.fc.weight
        assert same_answers(loaded, model, x)
    state_after_building_one_outside = torch.get_rng_state()
    torch.set_rng_state(state)
    Stubborn()
    assert torch.equal(torch.get_rng_state(), state_after_building_one_outside)


def test_a_recurrent_layer_which_refers_to_its_weights_weakly_is_filled(tmp_path):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.lstm(x)[0]
            return out

    model, x = Recurrent(), torch.randn(2, 5, 3)
    save_pruned(model, tmp_path)
    for source in (Recurrent, Recurrent()):
        assert same_answers(load_pruned(tmp_path, source), model, x)


def test_a_template_with_what_an_earlier_forward_left_in_it(tmp_path):
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(3, 2))  # its weight is a plain attribute, made anew by every forward
    x = torch.randn(2, 3)
    layer(x)
    save_pruned(layer, tmp_path)
    assert same_answers(load_pruned(tmp_path, layer), layer, x)


def test_what_cannot_be_saved_is_named(tmp_path):
    with torch.device("meta"):
        weightless = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="'weight' is on the meta device"):
        save_pruned(weightless, tmp_path)
    sparse = nn.Module()
    sparse.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(CheckpointError, match=r"'graph' is .*sparse"):
        save_pruned(sparse, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_one_storage_and_types_of_all_kinds_survive(tmp_path):
    def build() -> nn.Module:
        model = nn.Module()
        whole = torch.randn(4, 3)
        model.top, model.bottom = nn.Parameter(whole[:2]), nn.Parameter(whole[2:])
        model.turned = nn.Parameter(torch.randn(2, 3).T)
        for name, value in {
            "flags": torch.tensor([True, False]),
            "count": torch.tensor(7),
            "phases": torch.randn(3, dtype=torch.complex64),
            "bytes": torch.arange(5, dtype=torch.uint8),
            "nothing": torch.empty(0, 2),
        }.items():
            model.register_buffer(name, value)
        return model

    model = build()
    save_pruned(model, tmp_path)
    assert content_fingerprint(load_pruned(tmp_path, build)) == content_fingerprint(model)


def test_a_callable_that_builds_no_model_and_another_model_are_refused(tmp_path):
    _, model, _ = pruned_case("cnn")
    save_pruned(model, tmp_path)
    with pytest.raises(CheckpointError, match="returned int"):
        load_pruned(tmp_path, lambda: 3)
    with pytest.raises(CheckpointError, match="expected a ResidualCNN, found a TiedTransformer"):
        load_pruned(tmp_path, TiedTransformer)
    with pytest.raises(ZeroDivisionError):
        load_pruned(tmp_path, lambda: 1 / 0)


def test_a_model_whose_tensors_are_nowhere_is_refused(tmp_path):
    save_pruned(Stubborn(), tmp_path)
    with torch.device("meta"):
        template = nn.Module()
        template.fc = nn.Linear(3, 3)
        template.offset = torch.arange(3.0)
    template.__class__ = Stubborn
    with pytest.raises(CheckpointError, match="'offset' of Stubborn has no values"):
        load_pruned(tmp_path, template)


def test_there_must_be_a_checkpoint(tmp_path):
    with pytest.raises(StorageError, match="no pruned model in"):
        load_pruned(tmp_path, ResidualCNN)
    with pytest.raises(StorageError, match="no pruned model in"):
        load_pruned(tmp_path / "absent", ResidualCNN)


def test_saving_over_a_checkpoint_replaces_it_and_leaves_two_files(tmp_path):
    one, other = (randomised(ResidualCNN()) for _ in range(2))
    for model in (one, other):
        save_pruned(model, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "pruning.json"]
        assert content_fingerprint(load_pruned(tmp_path, ResidualCNN)) == content_fingerprint(model)


def test_where_the_directory_cannot_be_written_the_old_checkpoint_stays(tmp_path, monkeypatch):
    one, other = (randomised(ResidualCNN()) for _ in range(2))
    save_pruned(one, tmp_path)

    def full(*_: object) -> None:
        raise StorageError("Cannot write: No space left on device.")

    monkeypatch.setattr("pruner.checkpoint.write_json", full)
    with pytest.raises(StorageError, match="No space"):
        save_pruned(other, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "pruning.json"]
    assert content_fingerprint(load_pruned(tmp_path, ResidualCNN)) == content_fingerprint(one)
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(StorageError):
        save_pruned(other, tmp_path / "file" / "below")


def test_a_file_that_other_programs_can_read(tmp_path):
    _, model, _ = pruned_case("cnn")
    save_pruned(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["conv1.weight"], model.conv1.weight)
    header = (tmp_path / "model.safetensors").read_bytes()[8:].split(b"}}")[0]
    assert b'"format":"pt"' in header
    assert json.loads(Path(tmp_path / "pruning.json").read_text())["version"] == 1


class WidthInTheCode(nn.Module):
    """Attention whose code takes the joint width of the heads from its input, where no attribute can follow them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return out


def test_sizes_in_the_authors_code_are_loaded_too(tmp_path):
    model, x = WidthInTheCode(), torch.randn(2, 5, 16)
    neurons = discover(model, x)
    assert len(neurons) == 1
    prune_(model, PruningPlan({next(iter(neurons)).name: [1, 2]}))
    save_pruned(model, tmp_path)
    assert any(entry.path[0] == CODE_SIZES for entry in read_manifest(tmp_path).integers)
    for source in (WidthInTheCode, WidthInTheCode(), model):
        assert same_answers(load_pruned(tmp_path, source), model, x)


def test_a_state_dict_is_what_the_plain_file_holds_and_other_buffers_lie_beside_it(tmp_path):
    model = nn.Module()
    model.register_buffer("kept", torch.ones(2))
    model.register_buffer("apart", torch.zeros(3), persistent=False)
    save_pruned(model, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == {"kept"}
    assert load_file(tmp_path / "buffers.safetensors").keys() == {"apart"}
    (tmp_path / "buffers.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no readable buffers\.safetensors"):
        load_pruned(tmp_path, model)
