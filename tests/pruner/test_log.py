"""The logger "pruner": set up again and again, and never more than that."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pruner.config import Logging
from pruner.log import configure, logger
from tracker.errors import StorageError


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    level = logger.level
    yield
    configure(Logging(log_to_console=False), "")
    logger.setLevel(level)


def test_setting_up_twice_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        configure(Logging(log_to_file=True), tmp_path)
    logger.info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert (tmp_path / "logs" / "pruner.log").read_text().count("once") == 1


def test_the_file_is_appended_to(tmp_path: Path) -> None:
    for word in ("first", "second"):
        configure(Logging(log_to_file=True, log_to_console=False), tmp_path)
        logger.info(word)
        configure(Logging(log_to_console=False), tmp_path)
    lines = (tmp_path / "logs" / "pruner.log").read_text().splitlines()
    assert [line.rpartition(" - ")[2] for line in lines] == ["first", "second"]


def test_handlers_of_the_program_stay(tmp_path: Path) -> None:
    theirs = logging.NullHandler()
    logger.addHandler(theirs)
    try:
        configure(Logging(), tmp_path)
        configure(Logging(log_to_console=False), tmp_path)
        assert logger.handlers == [theirs]
    finally:
        logger.removeHandler(theirs)


def test_a_file_that_cannot_be_opened_leaves_the_old_set_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(Logging(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="log_to_file"):
        configure(Logging(log_to_file=True), tmp_path / "file")
    logger.info("still there")
    assert "still there" in capsys.readouterr().err
