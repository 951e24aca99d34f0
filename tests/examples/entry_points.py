"""An installed package that offers what an example's docstring says, and a fresh interpreter that finds it there."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def answer_with_installed(example: ModuleType, directory: Path, code: str) -> str:
    """What `code` prints where a package with the entry points in the example's docstring is installed."""
    points = _in_docstring(example)
    package = directory / "plugin-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    sections = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in points.items()
    )
    (package / "entry_points.txt").write_text("\n".join(sections))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _in_docstring(example: ModuleType) -> dict[str, dict[str, str]]:
    lines = re.findall(r"^    (\[project\.entry-points.*|\w+ = \".*\")$", example.__doc__ or "", re.MULTILINE)
    points: dict[str, dict[str, str]] = tomllib.loads("\n".join(lines))["project"]["entry-points"]
    return points
