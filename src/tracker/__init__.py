"""Which neurons exist in a model, and what do they do?"""

from tracker.activity import ActivityStats, GroupActivity
from tracker.alerts import Alert, AlertKind, alerts
from tracker.discover import discover, example_call, forget, last_discovered, neurons_of
from tracker.engine import NeuronEngine
from tracker.errors import NeuronScopeError
from tracker.fingerprint import content_fingerprint, structure_fingerprint
from tracker.history import History
from tracker.neuron_history import LayerHistory, NeuronEvent, NeuronHistory
from tracker.neuron_map import Frozen, Integer, NeuronGroup, NeuronMap, Read, Site
from tracker.neuron_tracker import NeuronTracker
from tracker.recommendations import Recommendations, load_recommendations

__all__ = [
    "ActivityStats",
    "Alert",
    "AlertKind",
    "Frozen",
    "GroupActivity",
    "History",
    "Integer",
    "LayerHistory",
    "NeuronEngine",
    "NeuronEvent",
    "NeuronGroup",
    "NeuronHistory",
    "NeuronMap",
    "NeuronScopeError",
    "NeuronTracker",
    "Read",
    "Recommendations",
    "Site",
    "alerts",
    "content_fingerprint",
    "discover",
    "example_call",
    "forget",
    "last_discovered",
    "load_recommendations",
    "neurons_of",
    "structure_fingerprint",
]
