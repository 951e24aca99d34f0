"""What a name of the form `module:callable` stands for."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tracker.errors import NeuronScopeError, nearest


def import_object(name: str, error: type[NeuronScopeError]) -> Any:
    """The object `attribute` of `module` for the name "module:attribute"; modules in the current directory count.

    Importing runs the module's code. Errors inside it are the module's own and pass through.

    Raises:
        error: the name has another form, there is no such module, or no such attribute in it.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise error(f"'{name}' is not of the form module:callable.", hint="Write for example my_project.models:build.")
    here = str(Path.cwd())
    if here not in sys.path:  # an installed script, unlike `python -m`, does not look in the current directory
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise
        hint = "Run in the directory that holds it, or install it."
        raise error(f"There is no module '{missing.name}' to import '{name}' from.", hint=hint) from missing
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = f"Check the name.{nearest(part, dir(found))}"
            raise error(f"The module '{module_name}' has no '{attribute}'.", hint=hint)
        found = getattr(found, part)
    return found
