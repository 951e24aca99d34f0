"""What every test relies on: no network, one thread, one seed, and skips for hardware that is not there."""

import os
import shutil

# Before torch is imported, and for the processes that tests start: several tests run at a time, and threads that wait
# for each other on a processor that is taken cost more than they give.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    if shutil.which("chromium") is None:
        missing["browser"] = "needs Chromium (make chromium)"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
