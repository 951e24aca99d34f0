"""One word for any data: `digits`, `digits-test`, `stdlib`, `stdlib-test`, or `module:callable`."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from neuronscope.imports import import_object
from tracker.errors import DataError
from tracker.extras import require

_STDLIB_BATCHES = 8


def load_data(name: str) -> Iterable[Any]:
    """The batches called `name`.

    - `digits`, `digits-test`: scikit-learn's handwritten digits, the images to train on and those held out;
    - `stdlib`, `stdlib-test`: tokens of the Python standard library's sources, for the models `stdlib-gpt` and
      `stdlib-llama`: modules to learn from and modules held out;
    - `module:callable`: what the callable returns, an iterable of batches that can be gone through more than once.

    Raises:
        DataError: the name leads to no data, or to data that can be gone through only once.
        MissingExtraError: scikit-learn, or transformers, is not installed.
    """
    if name in ("digits", "digits-test"):
        train, test = digits()
        return train if name == "digits" else test
    if name in ("stdlib", "stdlib-test"):
        from neuronscope.reference import batches

        return batches("stdlib-gpt", "train" if name == "stdlib" else "held-out", count=_STDLIB_BATCHES)
    found = import_object(name, DataError)
    data = found() if callable(found) else found
    if not isinstance(data, Iterable) or iter(data) is data:
        what = f"'{name}' gave a {type(data).__name__}, which cannot be gone through more than once."
        raise DataError(what, hint="Return a DataLoader or a list of batches.")
    return data


def digits(batch_size: int = 256) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of scikit-learn's 1797 handwritten digits, four fifths to train on and one fifth held out.

    Batches are (images, labels): float32 (batch, 1, 8, 8) in [0, 1], and int64 (batch,). The split is always the same,
    drawn class by class. The training loader shuffles.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    bundle = require("sklearn.datasets", "demo").load_digits()
    images = torch.from_numpy(bundle.images.astype(np.float32) / 16.0).unsqueeze(1)
    labels = torch.from_numpy(bundle.target.astype(np.int64))
    split = require("sklearn.model_selection", "demo").train_test_split
    train, test = split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=bundle.target)
    return (
        DataLoader(TensorDataset(images[train], labels[train]), batch_size=batch_size, shuffle=True),
        DataLoader(TensorDataset(images[test], labels[test]), batch_size=batch_size),
    )
