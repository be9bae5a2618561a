"""Imports modules that no start needs soon after it, one at a time.

Soon, because a package's files may be replaced under a running process. One at a time, because an import blocks the
loop: all at once took 15 ms, in which no sleeping server could be woken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

_AFTER_START_SECONDS = 1.0
_BETWEEN_SECONDS = 0.02


class DeferredImports:
    """Imports and calls, one at a time, from a second after `start`; the loop does other work between them."""

    def __init__(self) -> None:
        self._steps: deque[Callable[[], Any]] = deque()

    def add(self, modules: Iterable[str], then: Callable[[], Any] | None = None) -> None:
        """Import these modules of the supervisor, or `poolctl.` ones by their full names; then call `then`."""
        for name in modules:
            whole = name if name.startswith("poolctl.") else f"{__package__}.{name}"
            self._steps.append(partial(import_module, whole))
        if then is not None:
            self._steps.append(then)

    def start(self) -> None:
        """Take the first step a second from now."""
        asyncio.get_running_loop().call_later(_AFTER_START_SECONDS, self._step)

    def _step(self) -> None:
        if self._steps:
            # Scheduled first: a failing import, of a package that is being replaced, must not stop the others.
            asyncio.get_running_loop().call_later(_BETWEEN_SECONDS, self._step)
            self._steps.popleft()()
