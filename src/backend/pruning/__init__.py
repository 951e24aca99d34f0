"""The analyzers, by the guide's names."""

from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.weights import WeightAnalyzer

__all__ = ["PruningImpactAnalyzer", "WeightAnalyzer"]
