"""What would happen if a neuron were gone? The command line that answers a person."""

from importlib.metadata import version

__version__ = version("neuronscope")

__all__ = ["__version__"]
