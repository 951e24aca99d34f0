"""Which neurons exist in a model, and what do they do?"""

from tracker.activity import ActivityStats, GroupActivity
from tracker.discover import discover, example_call, forget, last_discovered, neurons_of
from tracker.engine import NeuronEngine
from tracker.errors import NeuronScopeError
from tracker.fingerprint import content_fingerprint, structure_fingerprint
from tracker.history import History
from tracker.neuron_map import Frozen, Integer, NeuronGroup, NeuronMap, Read, Site
from tracker.neuron_tracker import NeuronTracker
from tracker.recommendations import Recommendations, load_recommendations

__all__ = [
    "ActivityStats",
    "Frozen",
    "GroupActivity",
    "History",
    "Integer",
    "NeuronEngine",
    "NeuronGroup",
    "NeuronMap",
    "NeuronScopeError",
    "NeuronTracker",
    "Read",
    "Recommendations",
    "Site",
    "content_fingerprint",
    "discover",
    "example_call",
    "forget",
    "last_discovered",
    "load_recommendations",
    "neurons_of",
    "structure_fingerprint",
]
