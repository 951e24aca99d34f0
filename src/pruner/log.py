"""The pruner's own logger, set up by the logging section of a configuration. The root logger is never touched.

Records also reach the handlers of a program that configured logging itself; such a program sets `log_to_console` to
false so that nothing is shown twice.
"""

import logging
from pathlib import Path

from pruner.config import Logging
from tracker.errors import StorageError

logger = logging.getLogger("pruner")

_FORMAT = logging.Formatter("%(asctime)s - %(levelname)s - %(message)s", "%Y-%m-%d %H:%M:%S")
_OURS = "_neuronscope"


def configure(options: Logging, output_dir: str | Path) -> None:
    """Send what the pruner logs where `options` say: standard error, and `<output_dir>/logs/pruner.log`.

    Raises `StorageError` if the file cannot be opened.
    """
    handlers: list[logging.Handler] = []
    if options.log_to_console:
        handlers.append(logging.StreamHandler())
    if options.log_to_file:
        handlers.append(_file(Path(output_dir) / "logs" / "pruner.log"))
    for handler in [handler for handler in logger.handlers if hasattr(handler, _OURS)]:
        logger.removeHandler(handler)
        handler.close()
    for handler in handlers:
        setattr(handler, _OURS, True)
        handler.setFormatter(_FORMAT)
        logger.addHandler(handler)
    logger.setLevel(options.log_level)


def _file(path: Path) -> logging.FileHandler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"Cannot write the log {path}: {error.strerror}.",
            hint="Choose another output_dir, or set logging.log_to_file to false.",
        ) from error
