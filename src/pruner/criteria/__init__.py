"""What a neuron is worth, by name: scores from weights, from what was read, from gradients, from elimination.

A criterion gets `Evidence` and returns `Scores`; the lowest go first. Add one with `@criteria.register("mine")`, or
from an installed package with an entry point of the group "pruner.criteria".
"""

from pruner.criteria import curvature, gradients, statistics, weights
from pruner.criteria.evidence import Criterion, Evidence, find, names, register, unregister

__all__ = [
    "Criterion",
    "Evidence",
    "curvature",
    "find",
    "gradients",
    "names",
    "register",
    "statistics",
    "unregister",
    "weights",
]
