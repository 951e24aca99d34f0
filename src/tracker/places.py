"""Where in the model's own code something happens: file and line, past our frames and PyTorch's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

_NOT_THE_MODEL = (f"{Path(__file__).parent}/", f"{Path(torch.__file__).parent}/")


def running() -> str:
    """The line of the model's code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_MODEL):
        frame = frame.f_back
    return f"{_name(frame)}:{frame.f_lineno}" if frame else "unknown"


def raising(error: BaseException) -> str:
    """The innermost line of the model's code that let an error through; empty where there is none."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_NOT_THE_MODEL):
            place = f"{_name(traceback.tb_frame)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def _name(frame: FrameType) -> str:
    return Path(frame.f_code.co_filename).name
