"""Long work: cancelled within a second, outlived by the server, and never lost without a word."""

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.neuronscope.server.running import running

from neuronscope.server.pool import Pool
from neuronscope.server.problems import Problem
from neuronscope.server.store import EVENTS_KEPT, Store
from neuronscope.server.worker import Cancelled, _Teller
from tracker.errors import StorageError
from tracker.progress import listening, progress, step

pytest.importorskip("fastapi")
pytest.importorskip("transformers")

ENDLESS = {"method": "exact"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(tmp_path_factory.mktemp("jobs"), "digits-vit", max_queue=2) as client:
        client.get("/api/models/current")
        yield client


def started(api: httpx.Client, body: dict[str, Any] = ENDLESS, kind: str = "importance") -> str:
    """A job that takes a while, and runs."""
    answer = api.post("/api/pruning/neuron-importance", json=body, headers={"Prefer": "respond-async"})
    job: str = answer.json()["id"]
    while api.get(f"/api/jobs/{job}").json()["state"] == "queued":
        time.sleep(0.02)
    return job


def test_a_job_ends_within_a_second_and_the_next_one_runs(api: httpx.Client) -> None:
    api.post("/api/models/switch", json={"model_name": "stdlib-gpt"})
    job = started(api)
    begun = time.monotonic()
    told = api.delete(f"/api/jobs/{job}").json()
    assert time.monotonic() - begun < 1
    assert told["state"] == "cancelled"
    assert api.get(f"/api/jobs/{job}/result").status_code == 409
    assert api.delete(f"/api/jobs/{job}").json()["state"] == "cancelled"
    quick = {"layer_index": 0, "neuron_indices": [0], "input_text": "import"}
    assert api.post("/api/pruning/impact-analysis", json=quick).status_code == 200


def test_one_that_waits_is_taken_out_of_the_queue_and_the_queue_is_full(api: httpx.Client) -> None:
    api.post("/api/models/switch", json={"model_name": "stdlib-gpt"})
    first = started(api)
    ask = {"json": {"method": "first-order", "probes": 1}, "headers": {"Prefer": "respond-async"}}
    waiting = [api.post("/api/pruning/neuron-importance", **ask).json()["id"] for _ in range(2)]
    refused = api.post("/api/pruning/neuron-importance", **ask)
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert "no more than 2 may" in refused.json()["error"]
    for job in (*waiting, first):
        assert api.delete(f"/api/jobs/{job}").json()["state"] == "cancelled"


def test_progress_comes_often_and_reads_answer_meanwhile(api: httpx.Client) -> None:
    api.post("/api/models/switch", json={"model_name": "stdlib-gpt"})
    job = started(api)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert api.get("/api/pruning/weight-analysis").status_code == 200
    told = api.get(f"/api/jobs/{job}").json()
    assert told["state"] == "running"
    assert told["description"]
    api.delete(f"/api/jobs/{job}")
    # every half second, in three of them
    assert api.get(f"/api/jobs/{job}/events").text.count("event: progress") >= 5


def test_a_worker_that_dies_fails_its_job_and_is_replaced(api: httpx.Client) -> None:
    api.post("/api/models/switch", json={"model_name": "stdlib-gpt"})
    job = started(api)
    for process in multiprocessing.active_children():
        process.kill()
    assert "event: state" in api.get(f"/api/jobs/{job}/events").text
    told = api.get(f"/api/jobs/{job}").json()
    assert told["state"] == "failed"
    assert "ended" in told["error"]["error"]
    assert api.get(f"/api/jobs/{job}/result").status_code == 500
    quick = {"layer_index": 0, "neuron_indices": [9], "input_text": "import"}
    assert api.post("/api/pruning/impact-analysis", json=quick).status_code == 200


def test_a_restart_leaves_jobs_visible_and_they_can_be_run_again(tmp_path: Path) -> None:
    with running(tmp_path, "digits-vit") as api:
        done = api.post("/api/pruning/simulate", json={"neurons": [[0, 1]]}).json()
        job = started(api)
    with running(tmp_path, "digits-vit") as api:
        jobs = {one["id"]: one for one in api.get("/api/jobs").json()["jobs"]}
        assert jobs[job]["state"] in ("interrupted", "done")  # it may have been quicker than the server's end
        again = api.post(f"/api/jobs/{job}/again").json()
        assert again["kind"] == "importance"
        api.get(f"/api/jobs/{again['id']}/events")
        assert api.get(f"/api/jobs/{again['id']}/result").json()["method"] == "exact"
        assert api.post("/api/pruning/simulate", json={"neurons": [[0, 1]]}).json() == done
        assert api.get("/api/jobs").json()["jobs"][0]["cached"] is True


def test_a_server_that_was_killed_left_its_jobs_interrupted(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    queued, runs, done = (store.add_job("impact", {"a": 1}, "m", None) for _ in range(3))
    store.start(runs)
    store.finish(done, "done")
    again = Store(tmp_path / "jobs.sqlite")
    states = {one["id"]: one["state"] for one in again.jobs()}
    assert states == {queued: "interrupted", runs: "interrupted", done: "done"}
    assert [data.get("state") for _, _, data in again.events(runs)] == ["queued", "running", "interrupted"]


def test_the_store_keeps_states_and_the_latest_progress(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    job = store.add_job("impact", {}, "m", None)
    for number in range(3 * EVENTS_KEPT):
        store.progress(job, "on", number / 1000, 1.0)
    events = store.events(job)
    assert events[0][1:] == ("state", {"state": "queued"})
    assert len(events) <= 2 * EVENTS_KEPT + 1
    assert events[-1][2]["share"] == pytest.approx((3 * EVENTS_KEPT - 1) / 1000)
    assert store.events(job, after=events[-1][0]) == []


def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"these are somebody's notes, and no database" * 100)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"jobs\.sqlite"):
        Store(path)
    assert path.read_bytes() == before


def test_the_same_question_is_one_key(tmp_path: Path) -> None:
    pool = Pool(Store(tmp_path / "jobs.sqlite"), tmp_path, [], most=3)
    one = pool.store.job(pool.submit("impact", {"a": 1, "b": 2}, "m", "print"))
    same = pool.store.job(pool.submit("impact", {"b": 2, "a": 1}, "m", "print"))
    other = pool.store.job(pool.submit("impact", {"a": 1, "b": 2}, "m", "another"))
    assert one is not None
    assert same is not None
    assert other is not None
    assert one["key"] == same["key"] != other["key"]
    with pytest.raises(Problem):
        pool.submit("impact", {}, "m", None)
    pool.close()
    assert {job["state"] for job in pool.store.jobs()} == {"interrupted"}


def test_steps_inside_steps_add_up_and_end_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        def __init__(self) -> None:
            self.said: list[dict[str, Any]] = []

        def send(self, message: dict[str, Any]) -> None:
            self.said.append(message["progress"])

    stop, pipe = multiprocessing.get_context("spawn").Event(), Pipe()
    monkeypatch.setattr("neuronscope.server.worker.SECONDS_BETWEEN", 0.0)
    with listening(_Teller(pipe, stop, "job")):  # type: ignore[arg-type]
        with step("all"):
            for _ in progress(range(2), "outer"):
                for _ in progress(range(4), "inner"):
                    pass
        shares = [one["share"] for one in pipe.said if one["share"] is not None]
        assert shares == sorted(shares)
        assert shares[0] == 0
        assert shares[-1] == 1
        assert 0.5 + 0.125 in shares
        stop.set()
        with pytest.raises(Cancelled):
            list(progress(range(3), "more"))
