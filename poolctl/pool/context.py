"""What the servers of a pool share while they run: values for their applications, and one way to end them all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from .engine import LOCK

# How long the watching of an event outlives the servers that it was for; setting the event wakes it at once.
_LINGER_SECONDS = 5.0


class PoolContext:
    """Values that reach applications in ``scope["state"]``, and `cancel`, which ends the servers.

    Setting `stop`, an event that may be shared with other parts of a program, cancels as well.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, stop: threading.Event | None = None) -> None:
        self.values: dict[str, Any] = dict(values or {})
        self.stop = stop if stop is not None else threading.Event()
        self._endings: dict[object, Callable[[], object]] = {}
        self._watcher: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<PoolContext {'cancelled' if self.cancelled else 'live'}, {len(self.values)} values>"

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called or `stop` set: no server starts under this context any more."""
        return self.stop.is_set()

    def cancel(self) -> None:
        """Stop every server that runs under this context. Does not block; `Pool.join` awaits them."""
        self.stop.set()
        with LOCK:
            endings = list(self._endings.values())
            self._endings.clear()
        for end in endings:
            end()

    def attach(self, key: object, end: Callable[[], object]) -> None:
        """Have `end` called when the context is cancelled; at once if it is already."""
        with LOCK:
            self._endings[key] = end
            if self._watcher is None or not self._watcher.is_alive():  # it does not survive a fork
                self._watcher = threading.Thread(target=self._watch, name="poolctl-context", daemon=True)
                self._watcher.start()
        if self.stop.is_set():
            self.cancel()

    def detach(self, key: object) -> None:
        """Forget what `attach` got under `key`."""
        with LOCK:
            self._endings.pop(key, None)

    def _watch(self) -> None:
        while True:
            if self.stop.wait(_LINGER_SECONDS):
                self.cancel()
            with LOCK:
                if not self._endings:
                    self._watcher = None
                    return
