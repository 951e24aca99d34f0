"""A server that really listens, in a thread of the test's process, and a client that talks to it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from neuronscope.server import Settings, create_app


@contextmanager
def running(
    folder: Path, model: str = "stdlib-gpt", port: int | None = None, **options: object
) -> Iterator[httpx.Client]:
    """A client of a fresh server; `client.base_url` says where it listens."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    app = create_app(Settings(model=model, folder=folder, port=port, **options))  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=250) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)
