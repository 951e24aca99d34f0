"""`/api/pruning/…` and `/api/neurons…`: what the weights say, and what would happen if neurons went."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from neuronscope.server import asked, told
from neuronscope.server.atlas import METRICS
from neuronscope.server.found_out import exact_impacts
from neuronscope.server.problems import Problem
from neuronscope.server.service import MODEL_HEADER, Service, accepted, same_model, service_of

router = APIRouter(prefix="/api", tags=["pruning"], dependencies=[Depends(same_model)])

Here = Annotated[Service, Depends(service_of)]
Threshold = Annotated[float, Query(ge=0, le=100, allow_inf_nan=False, description="Per cent of each layer to flag.")]
JSON = "application/json"


@router.get("/pruning/weight-analysis", response_model=told.WeightAnalysis)
async def weight_analysis(here: Here) -> Response:
    """Zeros and magnitudes of all weights, module by module."""
    return Response((await here.atlas()).weights_json, media_type=JSON)


@router.get("/pruning/candidates", response_model=told.Candidates)
async def candidates(here: Here, threshold: Threshold = 10.0) -> Response:
    """Every neuron of every layer; the given per cent of lowest weights are flagged in each."""
    atlas = await here.atlas()
    return Response(await run_in_threadpool(atlas.candidates, threshold), media_type=JSON)


@router.get("/pruning/sparsity-patterns", response_model=told.Anything)
async def sparsity_patterns(request: Request, here: Here) -> Response:
    """Of every matrix: zero rows, columns and blocks, 2:4, Gini, effective rank, outlier columns (`patterns`)."""
    return await here.answer(request, "patterns", {})


@router.post("/pruning/impact-analysis", response_model=told.Impact)
async def impact_analysis(request: Request, here: Here, body: asked.ImpactRequest) -> Response:
    """What the model says to a text without some neurons of a layer."""
    (await here.atlas()).check([[body.layer_index, neuron] for neuron in body.neuron_indices])
    return await here.answer(request, "impact", body.model_dump())


@router.post("/pruning/neuron-importance", response_model=told.Importance)
async def neuron_importance(request: Request, here: Here, body: asked.ImportanceRequest) -> Response:
    """Every neuron of a layer, or of the model: its activity, and what its absence alone does."""
    if body.layer_index is not None:
        (await here.atlas()).check([[body.layer_index, 0]])
    return await here.answer(request, "importance", body.model_dump())


@router.post("/pruning/batch-analysis", response_model=told.Batch)
async def batch_analysis(request: Request, here: Here, body: asked.BatchRequest) -> Response:
    """Each candidate alone, all of them together, and advice."""
    (await here.atlas()).check([[one.layer_index, one.neuron_index] for one in body.pruning_candidates])
    return await here.answer(request, "batch", body.model_dump())


@router.post("/pruning/simulate", response_model=told.Simulation)
async def simulate(request: Request, here: Here, body: asked.SimulateRequest) -> Response:
    """What happens without neurons of any layers: the cumulative impact, what is saved, how texts go on."""
    (await here.atlas()).check(body.neurons)
    return await here.answer(request, "simulate", body.model_dump())


@router.post("/pruning/safe-set", response_model=told.SafeSet)
async def safe_set(request: Request, here: Here, body: asked.SafeSetRequest) -> Response:
    """The largest set found of neurons whose cumulative impact stays below the threshold."""
    (await here.atlas()).check(body.candidates or [])
    return await here.answer(request, "safe-set", body.model_dump())


@router.post("/pruning/optimize", response_model=told.Anything)
async def optimize(request: Request, here: Here, body: asked.OptimizeRequest) -> Response:
    """Search for the smallest model that is good enough: `front`, each point with the `neurons` that it removes."""
    if (body.tolerance is None) == (body.target is None):
        raise Problem(422, "Give either a tolerance or a target.", 'Such as {"tolerance": 0.05}.')
    return await here.answer(request, "optimize", body.model_dump(exclude_none=True))


@router.post("/pruning/apply", response_model=told.Anything)
async def apply(request: Request, here: Here, body: asked.ApplyRequest) -> Response:
    """Remove a selection from a copy of the model, repair, verify and store it; the model itself stays as it is."""
    (await here.atlas()).check(body.neurons)
    return await here.answer(request, "apply", body.model_dump())


@router.post("/compare", response_model=told.Anything)
async def compare(request: Request, here: Here, body: asked.CompareRequest) -> Response:
    """Hold models against the current one: loss, size, latency, agreement, and which neurons are the same.

    Of `selections` the impact of each, and how many neurons they share.
    """
    names = [here.catalog.checked(name) for name in body.models]
    if not (names or body.selections):
        raise Problem(422, "There is nothing to compare with.", "Name models or selections.")
    atlas, sets = await here.atlas(), {}
    for name in body.selections:
        found = here.store.selection(name)
        if found is None or found["fingerprint"] != atlas.fingerprint:
            raise Problem(404, f"The current model has no selection {name[:40]!r}.", "GET /api/selections lists them.")
        sets[name] = found["neurons"]
    asked_for = {"models": names, "sets": sets, "input_texts": body.input_texts}
    return await here.answer(request, "compare", asked_for)


@router.post("/finetune/jobs", response_model=told.Job, status_code=202)
async def finetune(here: Here, body: asked.FinetuneRequest) -> Response:
    """Start to train a model that was made here."""
    if here.made.get(body.model_name) is None:
        raise Problem(404, f"No model {body.model_name[:80]!r} was made here.", "Apply a selection first.")
    return accepted(here.seen(await here.submit("finetune", body.model_dump(), body.model_name)))


@router.get(
    "/neurons.bin",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "float32, little-endian, in order."}},
)
async def neurons_bin(
    here: Here,
    metric: Literal[
        "magnitude", "rank", "score", "consumer_norm", "activity", "variance", "first-order", "impact", "exact"
    ],
) -> Response:
    """One number for every neuron of the model. All but those of the weights are found out once, on sample inputs;
    `exact` is what jobs found out so far of single neurons, and NaN for the others.
    """
    atlas = await here.atlas()
    if metric in METRICS:
        values = await run_in_threadpool(atlas.metric, metric)
    elif metric == "exact":
        values = await run_in_threadpool(exact_impacts, here, atlas)
    else:
        job = await here.pool.wait(await here.submit("metric", {"metric": metric}))
        values = base64.b64decode(json.loads(here.result_of(job))["values"]["data"])
    return Response(values, media_type="application/octet-stream", headers={MODEL_HEADER: atlas.fingerprint})


@router.get("/neurons/{layer}/{index}", response_model=told.Anything)
async def neuron(
    request: Request,
    here: Here,
    layer: Annotated[int, "the number of the layer"],
    index: int,
    details: bool = False,
) -> Response:
    """One neuron by its weights; with `details` also what it does on sample inputs, and what its absence does."""
    atlas = await here.atlas()
    if layer < 0 or index < 0:
        raise Problem(404, f"There is no neuron {index} in layer {layer}.", "Numbers start at 0.")
    found = atlas.neuron(layer, index)
    if not details:
        return Response(json.dumps(found), media_type=JSON)
    return await here.answer(request, "neuron", {"layer_index": layer, "neuron_index": index})
