"""What a trace finds out about a model, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from tracker.code_sites import Place, Spot
from tracker.labels import Block, Grid, Labels
from tracker.sizes import Expression


@dataclass
class Carried:
    """What a tensor carries: its blocks of labels, and which parameters and buffers alone it is computed from.

    `origin` is None where it depends on the model's inputs. The values of a tensor with `picks` are positions on an
    axis with these labels, of which the model chose some.
    """

    blocks: tuple[Block, ...] = ()
    origin: frozenset[str] | None = frozenset()
    picks: Labels | None = None


class Written(NamedTuple):
    """Where in the model's code a size or number is written."""

    spot: Spot
    place: Place


class Equation(NamedTuple):
    """Somewhere the code computed `expression` for the size of one axis of `grid`."""

    expression: Expression
    grid: Grid
    axis: int
    where: str
    written: Written | None = None


class NumberUse(NamedTuple):
    """Somewhere the code turned `expression` into a number."""

    expression: Expression
    where: str
    written: Written | None = None


class Consumption(NamedTuple):
    """A contraction of an activation with a weight: `activation` and `weight` are the labels that it ties.

    `origin` are the parameters that the weight is computed from, `beneath` those of the activation, where that is
    computed from nothing else.
    """

    weight: Labels
    origin: frozenset[str]
    activation: Labels
    module: str
    axis: int
    how: Literal["input", "operator", "computed"]
    operator: str
    beneath: frozenset[str]


class Sum(NamedTuple):
    """A sum of two activations, and how many consumptions came before it."""

    labels: Labels
    consumptions: int


class Writing(NamedTuple):
    """The output axis of a weight in a product, a convolution or a look-up."""

    weight: Labels
    origin: frozenset[str]
    operator: str


class Normed(NamedTuple):
    """A weight that is computed as `length · direction / ‖direction‖` of two parameters.

    Each index of `dim` has a norm of its own; `summed` are the labels of the axes that it sums over.
    """

    direction: str
    length: str
    dim: int
    summed: tuple[Labels, ...]


class Frame(NamedTuple):
    """A module that is running."""

    name: str
    module: nn.Module
