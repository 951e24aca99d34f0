"""A training run to look back on: a small network learns digits, and neurons die on the way."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from neuronscope.data_names import digits
from tracker import NeuronEngine

EPOCHS = 8


def trained(folder: Path) -> Path:
    """The folder with `digits-mlp.safetensors` and `digits-mlp.json`."""
    batches = digits()[0]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    engine = NeuronEngine(output_dir=folder)
    engine.track_model(model, "digits-mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)  # fast enough to kill some
    for epoch in range(EPOCHS):
        losses = []
        with engine.tracking():
            for images, labels in batches:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        engine.log_epoch(epoch, loss=sum(losses) / len(losses))
    engine.save_neuron_history(folder / "digits-mlp.safetensors")
    engine.save_history(folder / "digits-mlp.json")
    return folder
