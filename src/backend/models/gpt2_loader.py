"""The loader, by the guide's name."""

from neuronscope.loader import MultiModelLoader

__all__ = ["MultiModelLoader"]
