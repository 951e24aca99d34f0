"""How a server is to run, and how much it takes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Settings:
    """What `neuronscope serve` was told.

    Args:
        model: the name of the first model; see `neuronscope.model_names.load_model`. What is given here may be a
            directory or `module:callable`; what a client names may not.
        folder: where jobs, exports and models that were made are kept.
        host, port: to listen on. Anything but loopback needs a `token`.
        token: what clients must send as `Authorization: Bearer …`.
        device: where models run; by default CUDA where there is one.
        history: a file that `engine.save_neuron_history` wrote, or a folder of such; see `histories`.
    """

    model: str = "stdlib-gpt"
    folder: Path = Path("outputs/neuronscope")
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    device: str | None = None
    history: Path | None = None
    max_body_bytes: int = 2_000_000
    max_texts: int = 64
    max_text_chars: int = 20_000
    max_candidates: int = 5_000
    max_queue: int = 32

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a request may call this server."""
        names = LOOPBACK if self.loopback else (*LOOPBACK, self.host)
        return tuple(f"{name}:{self.port}" for name in names) + (names if self.port == 80 else ())

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("127.0.0.1", "localhost", "::1")
