"""Optional dependencies: imported where they are used, and asked for by name when they are missing."""

from importlib import import_module
from types import ModuleType

from tracker.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of this distribution installs.

    Raises:
        MissingExtraError: the module is not installed; the message holds the command that installs it.
        ImportError: the module is there but broken, which installing again would hide.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        what = f"This needs the package '{package}', which is not installed."
        raise MissingExtraError(what, hint=f"Install it with: pip install 'neuronscope[{extra}]'") from error
