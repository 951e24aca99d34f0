"""Every measurement in a process of its own, with its limit."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from benchmarks.zoo import child
from benchmarks.zoo.child import run_each
from benchmarks.zoo.limits import Clock, limited

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ROOT = Path(__file__).parents[2]
Report = Callable[..., None]


def measure(task: str, report: Report) -> None:
    report(stage="start", process=os.getpid())
    if task == "loop":
        with limited(0.05):
            while True:
                pass
    if task == "sleep":
        time.sleep(60)
    if task == "raise":
        raise ValueError("as\nasked")
    if task == "die":
        os._exit(3)
    report(stage="done")


def test_what_goes_wrong_is_a_fact_and_the_others_go_on() -> None:
    facts = dict(run_each(["raise", "loop", "die", "fine"], measure, jobs=2))
    assert facts["fine"]["stage"] == "done"
    assert "failure" not in facts["fine"]
    assert facts["raise"]["why"].startswith("ValueError: as asked (test_child.py:")
    assert facts["loop"]["failure"] == "hang"
    assert facts["loop"]["stage"] == "start"
    assert facts["die"]["failure"] == "error"
    assert len({one["process"] for one in facts.values()} | {os.getpid()}) == 5


def test_a_process_that_only_waits_is_ended_by_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "WALL_SECONDS", 0.2)
    ((task, facts),) = run_each(["sleep"], measure, jobs=1)
    assert (task, facts["failure"]) == ("sleep", "hang")


def test_the_clock_counts_work_and_not_waiting() -> None:
    clock = Clock()
    time.sleep(0.2)
    assert clock.lap() < 0.1
    sum(range(10**6))
    assert clock.lap() > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_is_what_was_held_and_let_go_again() -> None:
    code = """
        from benchmarks.zoo.limits import Peak
        peak = Peak()
        block = bytearray(64 * 2**20)
        block[:: 2**10] = b"x" * len(block[:: 2**10])
        del block
        print(peak.mib())
    """  # in a process of its own: this one frees what other tests held whenever it likes
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 60 < float(done.stdout) < 100
