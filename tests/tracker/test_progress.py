import io
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from tracker import progress as module
from tracker.progress import progress, set_enabled, step


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A terminal to look at, and no patience: the bar appears at once."""
    stream = io.StringIO()
    monkeypatch.setattr(module, "_console", Console(file=stream, force_terminal=True, width=100))
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    monkeypatch.delenv("NEURONSCOPE_PROGRESS", raising=False)
    yield stream
    set_enabled(None)


def _wait_for_bar() -> None:
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()


def test_items_pass_through_in_order(screen: io.StringIO) -> None:
    assert list(progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert list(progress(iter("abc"), "spelling", total=3)) == ["a", "b", "c"]


def test_a_long_step_shows_its_name_and_count(screen: io.StringIO) -> None:
    for item in progress(range(2), "counting"):
        if item == 1:
            _wait_for_bar()
    assert "counting" in screen.getvalue()
    assert "/2" in screen.getvalue()


def test_a_step_without_parts_shows_its_name(screen: io.StringIO) -> None:
    with step("thinking"):
        _wait_for_bar()
    assert "thinking" in screen.getvalue()


def test_a_short_step_stays_silent(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0)
    assert list(progress(range(2), "counting")) == [0, 1]
    assert screen.getvalue() == ""


def test_silence_can_be_asked_for(screen: io.StringIO) -> None:
    set_enabled(False)
    with step("thinking"):
        _wait_for_bar()
    assert screen.getvalue() == ""


def test_no_bar_where_no_one_looks_on_unless_asked_for(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_console", Console(file=screen, force_terminal=False))
    with step("first"):
        _wait_for_bar()
    assert screen.getvalue() == ""
    monkeypatch.setenv("NEURONSCOPE_PROGRESS", "1")
    with step("second"):
        _wait_for_bar()
    assert "second" in screen.getvalue()


def test_bars_of_nested_steps_do_not_clash(screen: io.StringIO) -> None:
    for _ in progress(range(2), "outer"):
        _wait_for_bar()
        for _ in progress(range(2), "inner"):
            _wait_for_bar()
    assert "outer" in screen.getvalue()
    assert "inner" in screen.getvalue()


@pytest.mark.parametrize("leave", ["break", "raise"])
def test_the_bar_goes_when_the_loop_is_left_early(screen: io.StringIO, leave: str) -> None:
    items = progress(range(9), "counting")
    next(items)
    _wait_for_bar()
    if leave == "break":
        items.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            items.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
    assert "counting" in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("\x1b[2K")  # the line of the bar is erased
    assert list(progress(range(2), "again")) == [0, 1]
