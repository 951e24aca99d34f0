"""Which neurons exist in a model, and what do they do?"""

from tracker.discover import discover, example_call, forget, last_discovered, neurons_of
from tracker.errors import NeuronScopeError
from tracker.fingerprint import content_fingerprint, structure_fingerprint
from tracker.neuron_map import Frozen, Integer, NeuronGroup, NeuronMap, Read, Site

__all__ = [
    "Frozen",
    "Integer",
    "NeuronGroup",
    "NeuronMap",
    "NeuronScopeError",
    "Read",
    "Site",
    "content_fingerprint",
    "discover",
    "example_call",
    "forget",
    "last_discovered",
    "neurons_of",
    "structure_fingerprint",
]
