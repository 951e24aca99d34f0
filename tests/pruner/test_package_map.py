"""The README of the package names every module, and its code runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pruner import small_cnn

import pruner
from pruner import metrics, strategies
from pruner.config import create_default_config, sections
from pruner.engine import PruningEngine

PACKAGE = Path(pruner.__file__).parent
README = (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_every_module_is_in_the_map() -> None:
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert sorted(modules - set(re.findall(r"`(\w+\.py)`", README))) == []


@pytest.fixture
def _example() -> Iterator[None]:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    exec(compile(code.group(1), "README.md", "exec"), {})
    yield
    strategies.unregister("first-half")
    metrics.unregister("agreement")
    sections.unregister("budget")


@pytest.mark.usefixtures("_example")
def test_what_it_says_about_extending_is_true() -> None:
    config = create_default_config().update(strategy={"default_strategy": "first-half"}, budget={"seconds": 5})
    assert config.budget.seconds == 5
    model = small_cnn.model()
    assert PruningEngine(config=config).prune_by_strategy(model)["neurons_pruned"] == 101
    assert metrics.compute_metrics(model, model)["custom"] == {"agreement": 1.0}
