"""The project's own files agree with each other."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import neuronscope

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
CORE = {
    "torch",
    "numpy",
    "scipy",
    "safetensors",
    "torchmetrics",
    "pydantic",
    "pydantic-settings",
    "PyYAML",
    "typer",
    "rich",
}


def requirements(of: list[str]) -> Iterator[Requirement]:
    """The requirements listed, with the project's own extras replaced by what they hold."""
    for line in of:
        requirement = Requirement(line)
        if requirement.name == "neuronscope":
            for extra in requirement.extras:
                yield from requirements(EXTRAS[extra])
        else:
            yield requirement


def test_one_version_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert neuronscope.__version__ == metadata.version("neuronscope") == version == released[0]


def test_the_core_stays_small_and_torch_unpinned() -> None:
    core = {requirement.name: requirement for requirement in requirements(PYPROJECT["project"]["dependencies"])}
    assert set(core) == CORE
    assert all([clause.operator for clause in requirement.specifier] == [">="] for requirement in core.values())


def test_the_development_environment_is_pinned_within_the_bounds() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    assert all([clause.operator for clause in pin.specifier] == ["=="] for pin in pins)
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    for requirement in requirements(PYPROJECT["project"]["dependencies"] + EXTRAS["dev"]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_every_make_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    without_make = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    listing = subprocess.run(["make"], cwd=ROOT, env=without_make, check=True, capture_output=True, text=True).stdout
    assert re.findall(r"^  make (\S+) +\S", listing, re.MULTILINE) == phony[1].split()
    assert {"setup", "demo", "test", "bench", "docs"} <= set(phony[1].split())


def test_make_setup_is_one_look_at_a_stamp_when_nothing_changed() -> None:
    recipe = re.search(r"^\$\(INSTALLED\): (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert recipe[1].split() == ["pyproject.toml", "constraints.txt"]


def test_ci_runs_what_a_contributor_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")


def test_the_hooks_need_no_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)


def test_imports_go_one_way() -> None:
    (contract,) = PYPROJECT["tool"]["importlinter"]["contracts"]
    assert contract["type"] == "layers"
    assert contract["layers"] == ["neuronscope", "pruner", "tracker"]


def test_importing_the_command_line_does_not_import_torch() -> None:
    code = "import sys, neuronscope.cli; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def imported(source: Path) -> set[str]:
    """The packages that a module imports by an import statement, anywhere in it but for the type checker."""
    nodes = list(ast.walk(ast.parse(source.read_text())))
    guards = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    guarded = {id(child) for guard in guards for child in ast.walk(guard)}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import) and id(node) not in guarded:
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in guarded and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_nothing_but_the_core_is_imported_directly() -> None:
    modules = {"PyYAML": "yaml", "pydantic-settings": "pydantic_settings"}
    allowed = (
        {modules.get(name, name) for name in CORE} | sys.stdlib_module_names | {"tracker", "pruner", "neuronscope"}
    )
    beyond = {str(source.relative_to(ROOT)): imported(source) - allowed for source in (ROOT / "src").rglob("*.py")}
    # The server is the extra "serve" itself: the command asks for it by name before it is imported.
    server = {source for source in beyond if source.startswith("src/neuronscope/server/")}
    assert set().union(*(beyond.pop(source) for source in server)) == {"fastapi", "starlette"}
    assert {source: packages for source, packages in beyond.items() if packages} == {}


def test_what_is_slow_to_import_waits_until_it_is_needed() -> None:
    slow = ("fastapi", "torchmetrics", "scipy.stats", "matplotlib", "transformers")
    loaded = f"print(*(name for name in {slow} if name in sys.modules))"
    started = [sys.executable, "-c", f"import sys, neuronscope.cli, neuronscope.impact; {loaded}"]
    assert subprocess.run(started, check=True, capture_output=True, text=True).stdout.split() == []


def test_the_wheel_holds_the_three_packages_and_their_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    metadata_directory = f"neuronscope-{neuronscope.__version__}.dist-info"
    assert {name.partition("/")[0] for name in held} == {"tracker", "pruner", "neuronscope", metadata_directory}
    assert {"tracker/py.typed", "pruner/py.typed", "neuronscope/py.typed"} <= held
    assert f"{metadata_directory}/licenses/LICENSE" in held
    sources = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py") if "backend" not in path.parts
    }
    assert sources <= held


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    place = re.compile(rb"(?<![\w./:-])/(?:home|root|work|Users)/\w")
    found = [str(path) for path in tracked_files() if place.search(path.read_bytes())]
    assert found == []


def test_what_runs_write_is_not_tracked() -> None:
    tracked = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert not tracked & {"outputs", ".venv", "build", "dist"}
    assert "LICENSE" in tracked
