"""Runs a test's function in several processes that talk by gloo."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(work: Callable[[int, Path], None], folder: Path, count: int = 2) -> None:
    """Runs ``work(rank, folder)`` in each of ``count`` processes; what one raises is raised here."""
    mp.spawn(_run, (work, folder, count), nprocs=count)


def _run(rank: int, work: Callable[[int, Path], None], folder: Path, count: int) -> None:
    torch.set_num_threads(1)
    # A file to meet at: a free port may be taken by another before it is bound.
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count)
    work(rank, folder)
    dist.barrier()
    dist.destroy_process_group()
    # Without the interpreter's own end: a thread of gloo that still frees a tensor then asks for a lock that is gone,
    # and aborts the process (pytorch/pytorch#179291). Rarely, and after all the work is done.
    os._exit(0)
