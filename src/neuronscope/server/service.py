"""What all routes share: the current model, the jobs, and the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from neuronscope.server.atlas import Atlas
from neuronscope.server.catalog import Catalog
from neuronscope.server.histories import Histories
from neuronscope.server.made import MadeModels
from neuronscope.server.pool import Pool
from neuronscope.server.problems import Problem
from neuronscope.server.settings import Settings
from neuronscope.server.store import OVER, Store

CACHED = ("impact", "simulate", "importance", "batch", "metric", "neuron", "safe-set", "patterns", "latency")
"""Jobs whose answer depends on nothing but the model's content and what was asked."""
MODEL_HEADER = "X-Model"


class Service:
    """Lives as long as the server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.folder / "neuronscope.sqlite")
        self.made = MadeModels(settings.folder)
        self.histories = Histories(settings.history)
        self.catalog = Catalog(settings, self.made)
        self.pool = Pool(self.store, settings.folder, [settings.device], settings.max_queue)
        self._current: Atlas | None = None
        self._followed: str | None = None
        self._loading = self.pool.submit("load-model", {}, settings.model, None)

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    @property
    def current_name(self) -> str:
        """The model that is current, or is being loaded as the first one."""
        self._settle()
        return self._current.name if self._current is not None else self.settings.model

    async def atlas(self) -> Atlas:
        """The current model; waits for the first one to be loaded. Raises `Problem` where that failed."""
        self._settle()
        if self._current is None:
            job = await self.pool.wait(self._loading)
            if self._current is None:
                self._current = self._atlas_of(job)
        return self._current

    async def load(self, name: str) -> Atlas:
        """Make another model the current one; raises `Problem` where it cannot be loaded, and then nothing changes."""
        job = self.pool.submit("load-model", {}, self.catalog.checked(name), None)
        self._current = self._atlas_of(await self.pool.wait(job))
        return self._current

    def follow(self, job: str) -> None:
        """As soon as this job of loading is done, its model is the current one."""
        self._followed = job

    def _settle(self) -> None:
        """Take the model of the job that is followed, where it is done: whoever saw it end must find the model here."""
        found = None if self._followed is None else self.store.job(self._followed)
        if found is not None and found["state"] in OVER:
            self._followed = None
            if found["state"] == "done":
                self._current = self._atlas_of(found)

    async def answer(
        self, request: Request, kind: str, params: Mapping[str, Any], model: str | None = None
    ) -> Response:
        """Run a job and answer with its result; with `Prefer: respond-async`, at once with 202 and where it is."""
        _meant(request, await self.atlas())
        job = await self.submit(kind, params)
        if "respond-async" in request.headers.get("prefer", ""):
            return accepted(self.seen(job))
        return Response(self.result_of(await self.pool.wait(job)), media_type="application/json")

    async def submit(self, kind: str, params: Mapping[str, Any], model: str | None = None) -> str:
        """Queue a job about the current model, or about one that is named; returns its id."""
        if model is not None:
            return self.pool.submit(kind, params, model, None)
        atlas = await self.atlas()
        return self.pool.submit(kind, params, atlas.name, atlas.fingerprint if kind in CACHED else None)

    def result_of(self, job: Mapping[str, Any]) -> bytes:
        """The result of a job that is over; raises `Problem` where there is none."""
        found = self.pool.result(job)
        if found is not None:
            return found
        error = job["error"]
        if error is not None:
            raise Problem(error["status"], error["error"], error["details"])
        raise Problem(409, f"The job is {job['state']}.", "Run it again: POST /api/jobs/{id}/again.")

    def seen(self, job: str) -> dict[str, Any]:
        """A job as clients see it; raises `Problem` 404."""
        found = self.store.job(job)
        if found is None:
            raise Problem(404, f"There is no job {job[:40]!r}.", "GET /api/jobs lists them.")
        return found

    def _atlas_of(self, job: Mapping[str, Any]) -> Atlas:
        atlas = Atlas(json.loads(self.result_of(job)))
        self.catalog.learn(atlas.card)
        return atlas


async def same_model(request: Request) -> None:
    """Raise `Problem` 409 where the client means another model than the current one; see `_meant`."""
    _meant(request, await service_of(request).atlas())


def _meant(request: Request, atlas: Atlas) -> None:
    """Another client may have turned to another model meanwhile, and neurons of two models share their numbers: who
    says which model is meant (the header `X-Model`, a fingerprint) is answered about that one, or not at all.
    """
    meant = request.headers.get(MODEL_HEADER)
    if meant is not None and meant != atlas.fingerprint:
        raise Problem(
            409,
            f"The server has turned to another model: {atlas.name}.",
            "Look at that one, or load this one again.",
            **{MODEL_HEADER: atlas.fingerprint},
        )


def accepted(job: Mapping[str, Any]) -> JSONResponse:
    """202, and where the job is."""
    return JSONResponse(dict(job), status_code=202, headers={"Location": f"/api/jobs/{job['id']}"})


def service_of(request: Request) -> Service:
    """The service of the application that the request came to."""
    found: Service = request.app.state.service
    return found
