"""`/api/jobs…`: work that takes long; who closes the page does not end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from fastapi.responses import JSONResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from neuronscope.server import told
from neuronscope.server.problems import Problem
from neuronscope.server.service import Service, accepted, service_of
from neuronscope.server.store import OVER

router = APIRouter(prefix="/api/jobs", tags=["jobs"])

Here = Annotated[Service, Depends(service_of)]

POLL_SECONDS = 0.1


@router.get("", response_model=told.Jobs)
def jobs(here: Here) -> dict[str, object]:
    """The latest jobs, also those of servers that ended since."""
    return {"jobs": here.store.jobs()}


@router.get("/{job}", response_model=told.Job)
def one(here: Here, job: str) -> dict[str, object]:
    """How far a job is."""
    return here.seen(job)


@router.get("/{job}/result", response_model=told.Anything)
def result(here: Here, job: str) -> Response:
    """What the blocking endpoint would have answered; 409 while the job is not over."""
    found = here.seen(job)
    if found["state"] not in OVER:
        raise Problem(409, f"The job is {found['state']}.", "Listen to its events, or ask again later.")
    return Response(here.result_of(found), media_type="application/json")


def known(here: Here, job: str) -> str:
    """The id of a job that there is; an answer that has begun can no longer be a 404."""
    here.seen(job)
    return job


@router.get("/{job}/events", response_class=EventSourceResponse)
async def events(
    here: Here, job: Annotated[str, Depends(known)], last_event_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[ServerSentEvent]:
    """What happens in a job, as server-sent events `state`, `progress` and `partial` (what it found so far, such as a
    point of a search: its `parameters` and `metric`); ends with the job.

    `Last-Event-ID` takes up where a connection was lost; without it all that is known is told again.
    """
    after = int(last_event_id) if last_event_id is not None and last_event_id.isdigit() else 0
    while True:
        over = here.seen(job)["state"] in OVER
        for number, kind, data in here.store.events(job, after):
            after = number
            yield ServerSentEvent(data=data, event=kind, id=str(number))
        if over:
            return
        await asyncio.sleep(POLL_SECONDS)


@router.post("/{job}/again", response_model=told.Job, status_code=202)
async def again(here: Here, job: str) -> Response:
    """Run a job once more, such as one that was interrupted."""
    found = here.seen(job)
    if found["state"] not in OVER:
        raise Problem(409, f"The job is {found['state']}.", "Cancel it first, or wait.")
    new = here.pool.submit(found["kind"], found["params"], found["model"], None)
    if found["kind"] == "load-model":
        here.follow(new)
    return accepted(here.seen(new))


@router.delete("/{job}", response_model=told.Job)
async def cancel(here: Here, job: str) -> JSONResponse:
    """End a job, within a second; one that is over stays as it is."""
    here.seen(job)
    here.pool.cancel(job)
    return JSONResponse(await here.pool.wait(job))
