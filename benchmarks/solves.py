"""Choosing half of a layer's neurons, and solving for the weights that stay, at the widths of large models.

`python -m benchmarks.solves`, on the CUDA device where there is one. The rival is a product of two square matrices of
the layer's width in the same precision on the same device: a Cholesky factor is a third of its work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.measuring import write

from pruner.compensation.elimination import Problem, eliminate, swapped
from pruner.compensation.moments import Moments
from pruner.compensation.regression import solve

SIZES = ((768, 3072), (4096, 11008))
"""Residual width and MLP width: GPT-2 small, Llama 7B."""


def main() -> None:
    """Measure, write the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--largest", type=int, default=11008, help="leave out wider layers")
    options = parser.parse_args()
    device = torch.device(options.device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    _case(64, 256, device)  # starts the libraries
    rows, data = [], {}
    for width, neurons in SIZES:
        if neurons <= options.largest:
            found = _case(width, neurons, device)
            data[str(neurons)] = found
            rows.append([f"{neurons}", *(f"{found[what]:.2f} s" for what in ("choose", "swap", "solve", "product"))])
    write(f"solves_{device.type}", ["neurons", "choose half", "swap", "solve", f"one product, {kind}"], rows, data)


def _case(width: int, neurons: int, device: torch.device) -> dict[str, float]:
    random = torch.Generator(device).manual_seed(0)
    x = torch.randn(2 * neurons, neurons, generator=random, device=device)
    x = x + 0.7 * x.roll(1, 1) + 0.5 * x.roll(7, 1)  # neurons that tell of each other
    w = torch.randn(width, neurons, generator=random, device=device) / neurons**0.5
    xx = (x.T @ x / len(x)).double()
    mean = torch.zeros(neurons, dtype=torch.float64, device=device)
    yx = w.double() @ xx
    moments = Moments(float(len(x)), mean, mean[:width], xx, yx, (yx * w.double()).sum(1))
    problems = [Problem(xx, w, torch.arange(neurons, device=device).unsqueeze(1))]
    order, choose = _timed(lambda: eliminate(problems, neurons // 2).order, device)
    (gone, before, after), swap = _timed(lambda: swapped(problems, order[: neurons // 2]), device)
    if after > before:
        raise SystemExit("The swaps made it worse.")
    kept = torch.ones(neurons, dtype=torch.bool, device=device)
    kept[gone] = False
    indices = kept.nonzero().squeeze(1)
    solution, solved = _timed(lambda: solve(moments, moments, w, indices, bias=True), device)
    _, product = _timed(lambda: xx @ xx, device)
    return {
        "choose": choose,
        "swap": swap,
        "solve": solved,
        "product": product,
        "error": solution.errors["least squares"],
        "error_without_repair": solution.errors["none"],
    }


def _timed(run: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    found = run()
    wait()
    return found, time.perf_counter() - start


if __name__ == "__main__":
    main()
