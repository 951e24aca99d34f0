"""The application: routes, errors, and what guards them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from neuronscope.server import asked, routes_files, routes_histories, routes_jobs, routes_models, routes_pruning
from neuronscope.server.guard import Guard
from neuronscope.server.problems import Problem, problem_of
from neuronscope.server.service import Service
from neuronscope.server.settings import Settings
from tracker.errors import ConfigError, NeuronScopeError

logger = logging.getLogger("neuronscope.server")

PAGE = Path(__file__).parent / "page"
ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": asked.Problem, "description": "A token is needed."},
    403: {
        "model": asked.Problem,
        "description": "The request comes from another page, or under another name.",
    },
    404: {"model": asked.Problem, "description": "There is no such thing, layer or model."},
    409: {"model": asked.Problem, "description": "Not now: see the details."},
    413: {"model": asked.Problem, "description": "The request is too large."},
    422: {"model": asked.Problem, "description": "A field is wrong; the message says which."},
    429: {"model": asked.Problem, "description": "Too many jobs are waiting."},
    500: {"model": asked.Problem, "description": "Something went wrong here."},
    501: {"model": asked.Problem, "description": "This needs a package that is not installed."},
    507: {"model": asked.Problem, "description": "There is no room for it."},
}


def create_app(settings: Settings | None = None) -> FastAPI:
    """The server as an ASGI application; its worker starts and ends with it.

    Raises `ConfigError` where others could reach it without a token.
    """
    settings = settings or Settings()
    if not settings.loopback and not settings.token:
        raise ConfigError(
            f"On {settings.host} other machines could reach the server.", hint="Set a token, or listen on 127.0.0.1."
        )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(settings)
        try:
            yield
        finally:
            app.state.service.close()

    app = FastAPI(
        title="NeuronScope",
        version="1",
        summary="What would happen if these neurons went.",
        description="Every error is `{error, details}`. Long work is a job: with `Prefer: respond-async` the answer is "
        "202 and its address. With the header `X-Model`, a fingerprint, what is meant for another model than the "
        "current one is refused with 409.",
        lifespan=life,
        docs_url=None,  # the usual page loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        responses=ERRORS,
    )
    app.add_middleware(Guard, settings=settings)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(NeuronScopeError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _problem)
    for routes in (routes_models, routes_pruning, routes_jobs, routes_files, routes_histories):
        app.include_router(routes.router)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return app


async def _problem(_: Request, error: Exception) -> JSONResponse:
    told = problem_of(error)
    headers = error.headers if isinstance(error, Problem) else None
    return JSONResponse({key: told[key] for key in ("error", "details")}, told["status"], headers=headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (it is registered for these)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "The body"
    given = (
        f" It is {json.dumps(first.get('input'), default=str)[:80]}."
        if "input" in first and where != "The body"
        else ""
    )
    return JSONResponse({"error": f"{where}: {first['msg']}.", "details": f"Mend this field.{given}"}, 422)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (it is registered for these)
    hints = {404: "GET /api/openapi.json lists what there is.", 405: "Another method may do."}
    body = {"error": str(error.detail), "details": hints.get(error.status_code, "")}
    return JSONResponse(body, error.status_code, headers=error.headers)
