"""`/api/health` and `/api/models…`: what is loaded, and what could be."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from neuronscope.server import asked, told
from neuronscope.server.guard import COOKIE
from neuronscope.server.problems import Problem
from neuronscope.server.service import Service, accepted, service_of

router = APIRouter(prefix="/api", tags=["models"])

Here = Annotated[Service, Depends(service_of)]


@router.get("/health", response_model=told.Health)
async def health() -> dict[str, str]:
    """That the server lives."""
    return {"status": "healthy", "message": "NeuronScope is running."}


@router.post("/session", status_code=204, response_class=Response)
async def session(here: Here) -> Response:
    """For the page: keep the token of this request in a cookie that only this server gets and no script can read."""
    answer = Response(status_code=204)
    if here.settings.token is not None:
        answer.set_cookie(COOKIE, here.settings.token, path="/api", httponly=True, samesite="strict")
    return answer


@router.get("/models", response_model=told.Models)
def models(here: Here) -> dict[str, Any]:
    """The models that come with the package, those made here, and the current one."""
    return {"models": here.catalog.all(), "current_model": here.current_name}


@router.get("/models/current", response_model=told.Anything)
async def current(here: Here) -> JSONResponse:
    """Everything about the current model but its weights: sizes, layers, what is frozen and why."""
    return JSONResponse((await here.atlas()).card)


@router.get("/models/memory", response_model=told.Memory)
async def memory(here: Here) -> dict[str, Any]:
    """What the current model takes, and what was free when it had been loaded."""
    card = (await here.atlas()).card
    return {**card["memory"], "model_bytes": card["bytes"]}


@router.get("/models/latency", response_model=told.Latency)
async def latency(request: Request, here: Here) -> Response:
    """How long one forward of the current model takes over a batch of sample inputs, measured once."""
    return await here.answer(request, "latency", {"device": (await here.atlas()).card["device"]})  # kept for this one


@router.post("/models/switch", response_model=told.Switched)
async def switch(here: Here, body: asked.ModelRequest) -> dict[str, Any]:
    """Load another model and make it the current one; waits until it is."""
    atlas = await here.load(body.model_name)
    return {
        "message": f"{atlas.name} is loaded.",
        "current_model": atlas.name,
        "model_info": here.catalog.info(atlas.name),
        "memory_usage": {**atlas.card["memory"], "model_bytes": atlas.card["bytes"]},
    }


@router.post("/models/load", response_model=told.Anything)
async def load(request: Request, here: Here, body: asked.ModelRequest) -> Response:
    """The same, answered with the model's card; with `Prefer: respond-async`, as a job."""
    if "respond-async" in request.headers.get("prefer", ""):
        job = here.pool.submit("load-model", {}, here.catalog.checked(body.model_name), None)
        here.follow(job)
        return accepted(here.seen(job))
    return JSONResponse((await here.load(body.model_name)).card)


@router.get("/models/{name:path}", response_model=told.ModelInfo)
def model(here: Here, name: str) -> dict[str, Any]:
    """One of the models listed."""
    found = here.catalog.all().get(name)
    if found is None:
        raise Problem(404, f"There is no model {name[:80]!r} here.", "GET /api/models lists them.")
    return found
