"""`/api/histories…`: what every neuron did in training, epoch by epoch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from neuronscope.server import told
from neuronscope.server.histories import Run
from neuronscope.server.problems import Problem
from neuronscope.server.service import Service, service_of

router = APIRouter(prefix="/api/histories", tags=["training history"])

Here = Annotated[Service, Depends(service_of)]


@router.get("", response_model=told.Histories)
def histories(here: Here) -> dict[str, Any]:
    """The training runs that the server was started with: `neuronscope serve --history FILE_OR_FOLDER`."""
    return {"histories": here.histories.names()}


@router.get("/{name}", response_model=told.History)
def history(here: Here, name: str) -> dict[str, Any]:
    """One run: its epochs with loss and accuracy, its layers, which neurons died and which came back."""
    return here.histories.run(name).told()


@router.get(
    "/{name}/{epoch}/neurons.bin",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "float32, little-endian, in order."}},
)
def epoch_values(
    here: Here,
    name: str,
    epoch: int,
    statistic: Literal["firing_frequency", "mean_magnitude", "variance", "state"] = "firing_frequency",
) -> Response:
    """A number for every neuron in the epoch of that index (from 0); NaN where it was not seen or is gone.

    `state` is 0 for unseen, 1 for alive, 2 for dead and 3 for gone.
    """
    run = _with_epoch(here.histories.run(name), epoch)
    return Response(run.values(statistic, epoch).tobytes(), media_type="application/octet-stream")


@router.get("/{name}/neurons/{layer}/{neuron}", response_model=told.Anything)
def neuron(here: Here, name: str, layer: int, neuron: int) -> dict[str, Any]:
    """One neuron over all epochs, its index counted in the model as it was first seen."""
    run = here.histories.run(name)
    if not 0 <= layer < len(run.layers) or not 0 <= neuron < run.layers[layer].size:
        raise Problem(404, f"The run has no neuron {neuron} in layer {layer}.", "See its layer_sizes.")
    return run.neuron(layer, neuron)


def _with_epoch(run: Run, epoch: int) -> Run:
    count = len(run.neurons.epochs)
    if not 0 <= epoch < count:
        raise Problem(404, f"The run has {count} epochs; {epoch} is none of them.", "Count from 0.")
    return run
