"""The digits in Lightning: pruned while a network trains, killed, and gone on with."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from neuronscope.data_names import digits
from pruner import create_default_config
from pruner.trainers.lightning import PruningCallback
from tracker.errors import PlanError

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = create_default_config().update(logging={"log_to_console": False}, validation={"dry_run_first": False})


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(digits()[0].dataset, batch_size=64)


def callback(sparsity: float = 0.5) -> PruningCallback:
    return PruningCallback(
        sparsity, begin=5, every=5, end=30, watch=3, part="net", example=torch.zeros(2, 1, 8, 8), config=QUIET
    )


def trainer(folder: Path, own: PruningCallback, steps: int, **options) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(max_steps=steps, default_root_dir=folder, callbacks=[own], **quiet, **options)


def accuracy(module: Digits) -> float:
    x, y = digits()[1].dataset.tensors
    module.net.eval()
    with torch.no_grad():
        return float((module.net(x).argmax(1) == y).float().mean())


def test_digits_are_learned_while_half_of_the_neurons_go(tmp_path):
    module, own = Digits(), callback()
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, own, 110, logger=logger, enable_checkpointing=False).fit(module, loader())
    assert own.pruning.finished
    assert module.net[0].out_channels + module.net[5].out_features == 40
    assert accuracy(module) > 0.9
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "pruning/sparsity" in text.splitlines()[0]
    assert len(text.splitlines()) == 1 + len(own.pruning.events)


def test_a_run_that_was_killed_and_goes_on_gives_the_same_model(tmp_path):
    # The checkpoint is at the end of an epoch: in the middle of one, Lightning begins the data anew.
    def fit(module: Digits, steps: int, **options) -> PruningCallback:
        own = callback()
        saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=23, save_top_k=-1)
        made = trainer(tmp_path, own, steps, logger=False)
        made.callbacks.append(saver)
        made.fit(module, loader(), **options)
        return own

    whole, resumed = Digits(), Digits()
    fit(whole, 46)
    checkpoint = tmp_path / "step=23.ckpt"
    own = fit(resumed, 46, ckpt_path=checkpoint, weights_only=False)
    assert own.pruning.finished
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    packed = torch.load(checkpoint, weights_only=False)["state_dict"]["neuronscope_pruning"]
    assert json.loads(bytes(packed.tolist()))["done"] == 4


def test_a_second_fit_goes_on_with_the_schedule(tmp_path):
    module, own = Digits(), callback()
    trainer(tmp_path, own, 12, logger=False, enable_checkpointing=False).fit(module, loader())
    first, done = own.pruning, own.pruning.done
    trainer(tmp_path, own, 12, logger=False, enable_checkpointing=False).fit(module, loader())
    assert own.pruning is first
    assert own.pruning.done == done == 2


def test_several_processes_are_refused(tmp_path):
    class Two:
        world_size = 2

    with pytest.raises(PlanError, match="runs on 2 processes"):
        callback().on_train_start(Two(), Digits())
