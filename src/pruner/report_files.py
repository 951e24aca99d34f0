"""Reports as files: one JSON for programs, one self-contained page for people, and the way to those of any past run."""

import os
from pathlib import Path

from pydantic import ValidationError

from pruner.outputs import RunOutputs, list_runs
from pruner.report import Report
from tracker.errors import StorageError, nearest
from tracker.files import read_json, write_json, write_text


def write_report(report: Report, run: RunOutputs) -> dict[str, str]:
    """Store the report twice, for a person and for a program; returns `{"html": path, "json": path}`.

    Raises:
        StorageError: a file cannot be written.
    """
    from pruner.report_html import render_report

    write_text(run.report_html, render_report(report))
    write_json(run.report_json, report.model_dump(mode="json"))
    return {"html": str(run.report_html), "json": str(run.report_json)}


def load_report(path: str | os.PathLike[str]) -> Report:
    """Read a report's JSON.

    Raises:
        StorageError: the file is missing, or is not a report of this version.
    """
    data = read_json(path, what="a report")
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StorageError(
            f"{path} is not a report of version 1: {where}: {first['msg']}.",
            hint="Run the workflow again to write a new report.",
        ) from error


def open_report(report: str | os.PathLike[str] = "latest", output_dir: str | os.PathLike[str] = "outputs") -> Path:
    """The HTML file of a past run's report.

    `report` is "latest", the name of a run, or the path of a report's HTML or JSON file. A page that is missing is
    made again from the JSON.

    Raises:
        StorageError: there is no such report.
    """
    runs = list_runs(output_dir)
    given = Path(report)
    if given.suffix in (".html", ".json") and given.is_file():
        return _page(given)
    if str(report) == "latest" and runs:
        return _page(runs[0].report_json)
    for run in runs:
        if run.name == str(report):
            return _page(run.report_json)
    if not runs:
        raise StorageError(
            f"There is no report under {Path(output_dir) / 'reports'}.",
            hint="Run `neuronscope demo` or `neuronscope prune` first, or name the directory of its outputs.",
        )
    raise StorageError(
        f"There is no report '{report}' under {Path(output_dir) / 'reports'}."
        f"{nearest(str(report), [run.name for run in runs])}",
        hint=f"The latest run is '{runs[0].name}'.",
    )


def _page(path: Path) -> Path:
    """The HTML beside a report's JSON."""
    page = path.with_suffix(".html")
    if not page.is_file():
        from pruner.report_html import render_report

        write_text(page, render_report(load_report(path)))
    return page
