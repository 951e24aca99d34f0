"""What jobs found out about the current model so far: impacts of sets, and of single neurons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from neuronscope.server.atlas import Atlas
from neuronscope.server.pool import key_of
from neuronscope.server.service import Service

_MOST_JOBS = 1000


def impacts_of_sets(here: Service, atlas: Atlas) -> list[dict[str, Any]]:
    """Every impact of neurons together, and each of a batch alone, the latest first."""
    rows = []
    for job, result in _results(here, atlas, ("impact", "simulate", "batch")):
        params = job["params"]
        if job["kind"] == "batch":
            rows += [{"job": job["id"], "kind": "alone", **entry} for entry in result["individual_impacts"]]
            continue
        pairs = params.get("neurons") or [[params["layer_index"], n] for n in params["neuron_indices"]]
        kept = ("impact_score", "mean_change", "max_change", "safe_to_prune", "ablation", "metrics")
        rows.append({"job": job["id"], "kind": "together", "neurons": pairs} | {key: result[key] for key in kept})
    return rows


def exact_impacts(here: Service, atlas: Atlas) -> bytes:
    """The exact impact of every neuron of which it was found out, float32; NaN for the others.

    Of neurons that were asked for on several inputs, the latest.
    """
    known = np.full(sum(atlas.sizes), np.nan, "<f4")
    starts = np.concatenate([[0], np.cumsum(atlas.sizes)])
    for job, result in reversed(list(_results(here, atlas, ("batch", "importance", "neuron")))):
        params = job["params"]
        if params.get("approximate") or (job["kind"] == "importance" and params["method"] != "exact"):
            continue
        if job["kind"] == "neuron":
            entries = [{**result, "impact_score": result["impact"]["zero"]["impact_score"]}]
        else:
            entries = result["individual_impacts" if job["kind"] == "batch" else "importance_scores"]
        for entry in entries:
            known[starts[entry["layer_index"]] + entry["neuron_index"]] = entry["impact_score"]
    return known.tobytes()


def _results(here: Service, atlas: Atlas, kinds: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Jobs of these kinds about a model of these very weights, with their results, the latest first."""
    for job in here.store.jobs(states=("done",), limit=_MOST_JOBS):
        if job["kind"] in kinds and job["key"] == key_of(job["kind"], atlas.fingerprint, job["params"]):
            found = here.pool.result(job)
            if found is not None:
                yield job, json.loads(found)
