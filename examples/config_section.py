"""A section of options added to the configuration from outside, and a strategy that obeys it.

Processors compute in blocks: a layer of 90 channels may be no faster than one of 96. This strategy keeps every layer's
width at a multiple of what the new option `hardware.round_to` says.

    python examples/config_section.py

The option is checked like those that are built in, can be set in a configuration file, and as PRUNER_HARDWARE_ROUND_TO.
An installed package adds both by these lines of its pyproject.toml; a program of your own registers them, as below.

    [project.entry-points."pruner.config_sections"]
    hardware = "examples.config_section:Hardware"

    [project.entry-points."pruner.strategies"]
    rounded = "examples.config_section:rounded"
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from neuronscope.digits import DigitsCNN
from pruner import PruningEngine, PruningPlan, create_default_config, strategies
from pruner.config import Section, sections
from pruner.selection import StrategyInput, lowest
from tracker import discover


class Hardware(Section):
    """What the processor likes."""

    round_to: Annotated[int, Field(ge=1)] = 8
    """Layers that lose neurons keep a multiple of so many."""


def rounded(given: StrategyInput) -> PruningPlan:
    """Like "magnitude", but every layer keeps a few more neurons, up to the next multiple."""
    multiple = given.config.hardware.round_to
    remove = {}
    for name, gone in strategies.magnitude(given).remove.items():
        kept = given.limits.current[name] - len(gone)
        remove |= lowest(given, [name], len(gone) - -kept % multiple)
    return PruningPlan(remove)


def widths(model: nn.Module, strategy: str, **hardware: int) -> dict[str, int]:
    """The width of every layer after `strategy` has removed 30 % of the neurons."""
    quiet = create_default_config().update(logging={"log_to_console": False})
    engine = PruningEngine(config=quiet.update(hardware=hardware) if hardware else quiet)
    results = engine.prune_by_strategy(model, strategy)
    return {name: layer["after"] for name, layer in results["layers"].items()}


if __name__ == "__main__":
    sections.register("hardware")(Hardware)
    strategies.register("rounded")(rounded)
    for strategy, hardware in (("magnitude", {}), ("rounded", {}), ("rounded", {"round_to": 16})):
        torch.manual_seed(0)
        model = DigitsCNN().eval()
        discover(model, torch.rand(16, 1, 8, 8))
        print(strategy, *(f"{name} {value}" for name, value in hardware.items()))
        print("   ", *(f"{name} {width}" for name, width in widths(model, strategy, **hardware).items()))
