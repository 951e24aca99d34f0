"""The page in headless Chromium: how soon it shows something, and how long a changed selection takes to be drawn.

`python -m benchmarks.page`. The model of the first part is the one that comes with the package. The second part shows
the page a card and values of larger ones (random numbers: only their count matters here). The rival in the same page
draws every neuron of the smaller one as a rectangle of an SVG.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any

import httpx
import numpy as np
from benchmarks.measuring import write
from tests.neuronscope.server.browser import opened, tab

RUNS = 7
SIZES = {"12 × 3,072 (36,864)": [3072] * 12, "126 × 16,384 (2,064,384)": [16384] * 126}
SHARES = (10, 40, 5, 60, 20, 80, 15, 50, 30, 70)
REDRAWN = """async shares => {
  const slider = document.querySelector('input[type=range]');
  const found = [];
  for (const share of shares) {
    const drawn = new Promise(resolve => new PerformanceObserver((list, own) => {
      const [one] = list.getEntriesByName('redraw');
      if (one) { own.disconnect(); resolve(one); }
    }).observe({ type: 'measure' }));
    const start = performance.now();
    slider.value = share;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    const one = await drawn;
    found.push([one.duration, one.startTime + one.duration - start]);
    await new Promise(resolve => setTimeout(resolve, 150));
  }
  return found;
}"""
RECTANGLES = """async count => {
  const times = [];
  for (let run = 0; run < 3; run++) {
    const start = performance.now();
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    for (let index = 0; index < count; index++) {
      const one = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
      one.setAttribute('x', index % 3072 / 4); one.setAttribute('y', Math.floor(index / 3072) * 30);
      one.setAttribute('width', 0.25); one.setAttribute('height', 28);
      one.setAttribute('fill', `rgb(${index % 256},90,120)`);
      svg.append(one);
    }
    document.body.append(svg);
    await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)));
    times.push(performance.now() - start);
    svg.remove();
  }
  return times;
}"""


def main() -> None:
    """Measure, write the results, print the table."""
    with tempfile.TemporaryDirectory() as folder, _served(folder) as address, opened() as page:
        first, requests = _first(page, address)
        rows = [
            [
                "stdlib-gpt (4,608)",
                f"{first['contentful']:.0f} ms",
                f"{first['map']:.0f} ms",
                "",
                "",
                f"{requests['bytes'] / 1e6:.2f} MB",
            ]
        ]
        data: dict[str, Any] = {"first": first, "requests": requests, "redraw": {}}
        for name, sizes in SIZES.items():
            found = _redraw(tab(page.context), address, sizes)
            data["redraw"][name] = found
            rows.append(
                [
                    name,
                    "",
                    f"{found['map']:.0f} ms",
                    f"{found['paint']:.1f} ms",
                    f"{found['change']:.1f} ms",
                    _megabytes(sizes),
                ]
            )
        rival = median(page.evaluate(RECTANGLES, 36_864))
        data["rectangles_ms"] = rival
        rows.append(["36,864 as SVG rectangles", "", "", f"{rival:.0f} ms", "", ""])
    head = ["neurons", "first paint", "map after", "drawing", "selection changed to drawn", "asked for"]
    write("page", head, rows, data)


@contextmanager
def _served(folder: str) -> Iterator[str]:
    """The address of a server in a process of its own, as a user has it, with the model loaded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "neuronscope", "serve", "--no-browser", "--port", str(port), "--out", folder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:  # noqa: S603
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                for _ in range(600):
                    with suppress(httpx.ConnectError):
                        client.get("/api/models/current").raise_for_status()
                        client.get("/api/models/latency").raise_for_status()  # measured once, and then known
                        break
                    time.sleep(0.1)
                else:
                    raise SystemExit("The server did not start.")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _first(page: Any, address: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Medians of milliseconds from the navigation, and what was asked for in one of them."""
    maps, paints = [], []
    for _ in range(RUNS):
        fresh = tab(page.context.browser.new_context(viewport={"width": 1280, "height": 900}))
        answers: list[Any] = []
        fresh.on("response", lambda one, answers=answers: answers.append(one))
        fresh.goto(address)
        maps.append(_map_after(fresh))
        paints.append(fresh.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        fresh.wait_for_timeout(500)
        asked = {one.url: len(one.body()) for one in answers if not one.url.endswith("/events")}
        if fresh.said:
            raise SystemExit(f"The console said: {fresh.said}")
        fresh.context.close()
    largest = max(asked, key=lambda url: asked[url])
    told = {
        "count": len(asked),
        "bytes": sum(asked.values()),
        "largest": [largest.removeprefix(address), asked[largest]],
    }
    return {"map": median(maps), "contentful": median(paints)}, told


def _map_after(page: Any) -> float:
    page.wait_for_function("() => performance.getEntriesByName('redraw').length > 0")
    return float(
        page.evaluate(
            "() => { const [one] = performance.getEntriesByName('redraw'); return one.startTime + one.duration; }"
        )
    )


def _redraw(page: Any, address: str, sizes: list[int]) -> dict[str, float]:
    random = np.random.default_rng(0).lognormal(size=sum(sizes)).astype("<f4").tobytes()

    def card(route: Any) -> None:
        told = route.fetch().json()
        named = [f"transformer.h.{layer}" for layer in range(len(sizes))]
        route.fulfill(json=told | {"layers": len(sizes), "layer_sizes": sizes, "layer_names": named})

    page.set_viewport_size({"width": 1920, "height": 1080})
    page.route("**/api/models/current", card)
    page.route("**/api/neurons.bin*", lambda route: route.fulfill(body=random))
    refusal = json.dumps({"error": "Nothing is asked here.", "details": ""})
    page.route(re.compile("/api/pruning/simulate"), lambda route: route.fulfill(status=429, body=refusal))
    page.goto(f"{address}#open=saved")
    shown = _map_after(page)
    page.wait_for_selector("input[type=range]:not([disabled])")
    times = page.evaluate(REDRAWN, SHARES)
    return {
        "map": shown,
        "paint": median(paint for paint, _ in times),
        "change": median(change for _, change in times),
        "worst_change": max(change for _, change in times),
    }


def _megabytes(sizes: list[int]) -> str:
    return f"{4 * sum(sizes) / 1e6:.2f} MB of values"


if __name__ == "__main__":
    main()
