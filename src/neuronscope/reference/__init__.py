"""Reference models: small networks trained on real data that every machine has, by the scripts in here.

`load("stdlib-gpt")` gives one with no network; `batches` gives data for it, `measured` says how good it is, and
`python -m neuronscope.reference NAME` trains it anew.
"""

from neuronscope.reference.data import batches, texts
from neuronscope.reference.measure import measured
from neuronscope.reference.shipped import Reference, load, names

__all__ = ["Reference", "batches", "load", "measured", "names", "texts"]
