"""A door to measuring and checking, under the name that the guide uses; the rooms are `metrics` and `validation`."""

from pruner.metrics import PruningMetrics, compute_metrics
from pruner.validation import PruningValidator, validate_pruning

__all__ = ["PruningMetrics", "PruningValidator", "compute_metrics", "validate_pruning"]
