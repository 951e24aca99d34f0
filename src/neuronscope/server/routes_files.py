"""`/api/selections…`, exports, downloads and reports: what is kept, and what can be taken away."""

from __future__ import annotations

import json
import re
import secrets
import time
import zipfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response

from neuronscope.server import asked, told
from neuronscope.server.found_out import impacts_of_sets
from neuronscope.server.guard import REPORT_POLICY
from neuronscope.server.made import PREFIX, Made
from neuronscope.server.problems import Problem
from neuronscope.server.service import Service, same_model, service_of
from neuronscope.tables import write_table
from tracker.files import atomic_path

router = APIRouter(prefix="/api", tags=["files"], dependencies=[Depends(same_model)])

Here = Annotated[Service, Depends(service_of)]

_FILE = re.compile(r"(weight|impact)-\d{8}-\d{6}-[0-9a-f]{8}\.(json|csv|parquet|npz)")


@router.get("/selections", response_model=told.Selections)
def selections(here: Here) -> dict[str, Any]:
    """All that were saved, of every model."""
    return {"selections": here.store.selections()}


@router.post("/selections", response_model=told.Selection, status_code=201)
async def save(here: Here, body: asked.SelectionRequest) -> dict[str, Any]:
    """Keep neurons of the current model under a name."""
    atlas = await here.atlas()
    atlas.check(body.neurons)
    return here.store.keep_selection(body.name, atlas.name, atlas.fingerprint, _unique(body.neurons))


@router.post("/selections/import", response_model=told.Selection, status_code=201)
async def import_selection(here: Here, body: asked.SelectionFile) -> dict[str, Any]:
    """Take in what was exported; refused where it was made for a model with other weights."""
    atlas = await here.atlas()
    if body.fingerprint != atlas.fingerprint:
        raise Problem(
            409,
            f"The selection is for {body.model[:80]!r} with the fingerprint {body.fingerprint[:20]}, "
            f"and the current model {atlas.name!r} has {atlas.fingerprint}.",
            "Load that model first.",
        )
    atlas.check(body.neurons)
    return here.store.keep_selection(body.name, atlas.name, atlas.fingerprint, _unique(body.neurons))


@router.get("/selections/{selection}", response_model=told.Selection)
def selection(here: Here, selection: str) -> dict[str, Any]:
    """One of them."""
    return _known(here, selection)


@router.put("/selections/{selection}", response_model=told.Selection)
async def change(here: Here, selection: str, body: asked.SelectionRequest) -> dict[str, Any]:
    """Give it another name or other neurons."""
    known, atlas = _known(here, selection), await here.atlas()
    if known["fingerprint"] != atlas.fingerprint:
        raise Problem(409, f"The selection is for {known['model']!r}.", "Load that model first.")
    atlas.check(body.neurons)
    return here.store.keep_selection(
        body.name, known["model"], known["fingerprint"], _unique(body.neurons), known["id"]
    )


@router.delete("/selections/{selection}", status_code=204, response_class=Response)
def drop(here: Here, selection: str) -> Response:
    """Forget it."""
    if not here.store.drop_selection(selection):
        raise Problem(404, f"There is no selection {selection[:40]!r}.", "GET /api/selections lists them.")
    return Response(status_code=204)


@router.get("/selections/{selection}/export", response_model=told.Anything)
def export_selection(here: Here, selection: str) -> JSONResponse:
    """As a file that `/api/selections/import` takes."""
    known = _known(here, selection)
    content = {
        "format": "neuronscope/selection",
        "version": 1,
        **{key: known[key] for key in ("name", "model", "fingerprint", "neurons")},
    }
    name = f"selection-{known['id']}.json"
    return JSONResponse(content, headers={"Content-Disposition": f'attachment; filename="{name}"'})


@router.post("/pruning/export", response_model=told.Exported)
async def export(here: Here, body: asked.ExportRequest) -> dict[str, str]:
    """Write the weights of all neurons, or all impacts that were found out, to a file on the server."""
    atlas = await here.atlas()
    about: dict[str, Any] = {"type": body.type, "model": atlas.name, "fingerprint": atlas.fingerprint}
    if body.type == "weight":
        rows, about = atlas.candidate_rows(10.0), {**about, **atlas.weights}
    else:
        rows = impacts_of_sets(here, atlas)
        if not rows:
            raise Problem(409, "No impact was found out yet.", "Ask for an impact analysis first.")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{body.type}-{stamp}-{secrets.token_hex(4)}.{body.format}"
    path = here.settings.folder / "exports" / name
    await run_in_threadpool(write_table, path, rows, about)
    return {
        "message": f"{len(rows)} rows were written.",
        "file_path": str(path),
        "download": f"/api/exports/{name}",
    }


@router.get("/exports/{name}", response_class=FileResponse)
def exported(here: Here, name: str) -> FileResponse:
    """A file that an export wrote."""
    path = here.settings.folder / "exports" / name
    if not _FILE.fullmatch(name) or not path.is_file():
        raise Problem(404, f"There is no export {name[:80]!r}.", "POST /api/pruning/export makes one.")
    return FileResponse(path, filename=name)


@router.get("/downloads/{made}", response_class=FileResponse)
async def download(here: Here, made: str) -> FileResponse:
    """A model that was made here: its checkpoint, the plan and the report, as one ZIP file."""
    known = _made(here, made)
    path = here.settings.folder / "exports" / f"{known.id}.zip"
    if not path.is_file():
        await run_in_threadpool(_pack, known, path)
    return FileResponse(path, filename=f"{known.id}.zip", media_type="application/zip")


@router.get("/report/{made}", response_class=FileResponse)
def report(here: Here, made: str) -> FileResponse:
    """The report about how it was made: one page, shown as nobody's origin."""
    known = _made(here, made)
    return FileResponse(
        known.report, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY}
    )


def _known(here: Service, selection: str) -> dict[str, Any]:
    found = here.store.selection(selection)
    if found is None:
        raise Problem(404, f"There is no selection {selection[:40]!r}.", "GET /api/selections lists them.")
    return found


def _made(here: Service, made: str) -> Made:
    found = here.made.get(PREFIX + made)
    if found is None:
        raise Problem(404, f"No model {made[:80]!r} was made here.", "POST /api/pruning/apply makes one.")
    return found


def _pack(made: Made, path: Path) -> None:
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(made.checkpoint.rglob("*")):
            if file.is_file():
                archive.write(file, f"{made.id}/{file.relative_to(made.checkpoint)}")
        archive.writestr(f"{made.id}/plan.json", json.dumps(made.plan, indent=2))
        archive.write(made.report, f"{made.id}/report.html")


def _unique(pairs: list[list[int]]) -> list[list[int]]:
    return sorted(map(list, set(map(tuple, pairs))))
