"""NeuronScope over HTTP: `create_app` gives the application, `neuronscope serve` runs it."""

from neuronscope.server.app import create_app
from neuronscope.server.settings import Settings

__all__ = ["Settings", "create_app"]
