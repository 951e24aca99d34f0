"""The shipped language model in the Trainer of transformers: pruned while it trains, killed, and gone on with."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from neuronscope import reference
from pruner import create_default_config
from pruner.trainers.transformers import PruningCallback
from tracker.errors import PlanError

QUIET = create_default_config().update(
    logging={"log_to_console": False}, validation={"dry_run_first": False}, strategy={"kinds": ("mlp",)}
)


class Rows(torch.utils.data.Dataset):
    def __init__(self) -> None:
        batches = reference.batches("stdlib-gpt", count=3, batch_size=8, length=32)
        self.rows = torch.cat([batch["input_ids"] for batch in batches])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def trainer(folder: Path, callback: PruningCallback, **options) -> transformers.Trainer:
    arguments = {"max_steps": 8, "save_steps": 1, "logging_steps": 100, "report_to": "none"} | options
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        **arguments,
    )
    model = reference.load("stdlib-gpt").model
    return transformers.Trainer(model, args, train_dataset=Rows(), callbacks=[callback])


def callback(sparsity: float = 0.5, **options) -> PruningCallback:
    return PruningCallback(sparsity, begin=2, every=2, end=6, watch=1, config=QUIET, **options)


def widths(model: torch.nn.Module) -> int:
    return sum(block.mlp.c_fc.weight.shape[1] for block in model.transformer.h)


def test_a_run_that_was_killed_and_goes_on_gives_the_same_model(tmp_path):
    one = trainer(tmp_path, callback())
    dense = widths(one.model)
    one.train()
    assert widths(one.model) == dense // 2

    again = trainer(tmp_path, callback())
    assert widths(again.model) == dense
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert widths(again.model) == dense // 2
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_numbers_go_to_the_trainers_own_logger(tmp_path):
    own = callback()
    made = trainer(tmp_path, own, save_strategy="no", max_steps=6)
    own.attach(made)
    made.train()
    logged = [entry for entry in made.state.log_history if "pruning/sparsity" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert logged[-1]["pruning/sparsity_target"] == 0.5
    assert logged[-1]["pruning/sparsity"] == pytest.approx(0.5, abs=1e-3)  # of the MLP neurons, which may go; not heads
    assert logged[-1]["pruning/parameters"] == made.model.num_parameters()


def test_a_checkpoint_elsewhere_is_named_or_refused(tmp_path):
    one = trainer(tmp_path / "here", callback(), max_steps=5)
    one.train()
    checkpoint = tmp_path / "here" / "checkpoint-5"
    other = callback()
    there = trainer(tmp_path / "there", other)
    with pytest.raises(PlanError, match=r"no checkpoint in .*there is of its shapes"):
        there.train(resume_from_checkpoint=str(checkpoint))
    other = callback()
    there = trainer(tmp_path / "there", other)
    other.resume(there.model, checkpoint)
    there.train(resume_from_checkpoint=str(checkpoint))
    assert other.pruning.finished
    with pytest.raises(PlanError, match="holds no state of a pruning"):
        other.resume(there.model, tmp_path)


def test_checkpoints_hold_plain_json(tmp_path):
    one = trainer(tmp_path, callback(), max_steps=5)
    one.train()
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["PruningCallback"]["done"] == 2


def test_several_processes_are_refused(tmp_path, monkeypatch):
    made = trainer(tmp_path, callback(), max_steps=1)
    monkeypatch.setattr(type(made.args), "world_size", property(lambda _: 2))
    with pytest.raises(PlanError, match="runs on 2 processes"):
        made.callback_handler.on_train_begin(made.args, made.state, made.control)
