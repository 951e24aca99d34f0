"""A configuration section added from outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.examples.entry_points import answer_with_installed

from examples import config_section as example
from neuronscope.digits import DigitsCNN
from pruner import PruningConfig, create_default_config, strategies
from pruner.config import sections
from tracker import discover
from tracker.errors import ConfigError


@pytest.fixture
def registered() -> Iterator[None]:
    sections.register("hardware")(example.Hardware)
    strategies.register("rounded")(example.rounded)
    yield
    sections.unregister("hardware")
    strategies.unregister("rounded")


def _model() -> DigitsCNN:
    torch.manual_seed(0)
    model = DigitsCNN().eval()
    discover(model, torch.rand(4, 1, 8, 8))
    return model


@pytest.mark.parametrize("round_to", [8, 16])
def test_widths_are_multiples_of_the_option(registered: None, round_to: int) -> None:
    free = example.widths(_model(), "magnitude")
    found = example.widths(_model(), "rounded", round_to=round_to)
    assert found
    for name, width in found.items():
        assert width % round_to == 0, name
        assert free[name] <= width < free[name] + round_to
    assert any(width % round_to for width in free.values())


def test_the_option_has_a_default_and_a_rule(registered: None) -> None:
    assert create_default_config().hardware.round_to == 8  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"hardware\.round_to = 0"):
        create_default_config().update(hardware={"round_to": 0})


def test_the_environment_sets_it(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNER_HARDWARE_ROUND_TO", "32")
    assert create_default_config().hardware.round_to == 32  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_keeps_it(registered: None, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"config.{suffix}"
    create_default_config().update(hardware={"round_to": 4}).save(path)
    assert PruningConfig.from_file(path).hardware.round_to == 4  # type: ignore[attr-defined]


def test_without_the_section_the_option_is_unknown() -> None:
    with pytest.raises(ConfigError, match="hardware"):
        create_default_config().update(hardware={"round_to": 4})


def test_an_installed_package_offers_both(tmp_path: Path) -> None:
    code = """
        from pruner import create_default_config, strategies
        config = create_default_config().update(**{"hardware.round_to": 4})
        print(config.hardware.round_to, strategies.find("rounded").__module__)
    """
    assert answer_with_installed(example, tmp_path, code) == "4 examples.config_section"
