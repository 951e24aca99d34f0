"""What the README and docs/ show works: their Python runs, and the commands and options they name exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
from packaging.requirements import Requirement

from neuronscope.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md"] if path.exists()
)


class Block(NamedTuple):
    language: str
    line: int
    text: str


def blocks(markdown: str) -> Iterator[Block]:
    """The fenced code blocks, each with the number of its first line."""
    for match in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL):
        yield Block(match[1], markdown.count("\n", 0, match.start(2)) + 1, match[2])


def commands(markdown: str) -> Iterator[list[str]]:
    """The words of every command in the shell blocks, comments and prompts taken off."""
    for block in blocks(markdown):
        if block.language in ("bash", "sh", "shell", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page.read_text()):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_exist(page: Path) -> None:
    unknown = [complaint for words in commands(page.read_text()) if (complaint := complain(words))]
    assert unknown == []


def complain(words: list[str]) -> str:
    """What is wrong with a command of ours, or "" if nothing is, or if it is not one of ours."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "".join(f"no target {word}" for word in arguments if "=" not in word and word not in targets)
    if program == "neuronscope":
        return complain_about_command_line(arguments)
    if program == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [Requirement(word) for word in arguments if word.startswith("neuronscope")]
        return "".join(f"no extra {extra}" for each in wanted for extra in each.extras if extra not in known)
    return ""


def complain_about_command_line(arguments: list[str]) -> str:
    group = typer.main.get_command(app)
    name = next((word for word in arguments if not word.startswith("-")), None)
    command = group.commands.get(name) if name else group  # type: ignore[attr-defined]
    if command is None:
        return f"no command neuronscope {name}"
    options = {option for parameter in [*group.params, *command.params] for option in parameter.opts}
    used = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    return "".join(f"no option {option} of neuronscope {name}" for option in sorted(used - options - {"--help"}))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("make demo", ""),
        ("make demos", "no target demos"),
        ("neuronscope map my.models:build --json map.json", ""),
        ("neuronscope mop my.models:build", "no command neuronscope mop"),
        ("neuronscope map my.models:build --jason map.json", "no option --jason of neuronscope map"),
        ("pip install 'neuronscope[plot]'", ""),
        ("pip install 'neuronscope[plots]'", "no extra plots"),
        ("ls -l", ""),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, complaint: str) -> None:
    (words,) = commands(f"```bash\n$ {line}  # a comment\n```\n")
    assert complain(words) == complaint


def test_blocks_know_their_language_and_line() -> None:
    page = "# Title\n\n```python\nx = 1\n```\n\ntext\n\n```bash\nmake \\\n  demo\n```\n"
    assert list(blocks(page)) == [Block("python", 4, "x = 1\n"), Block("bash", 10, "make \\\n  demo\n")]
    assert list(commands(page)) == [["make", "demo"]]
