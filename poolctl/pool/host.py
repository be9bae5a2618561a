"""What the servers on one runner share: who has which address, and how often each name was placed."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from poolctl.runners.protocol import Runner

from .lock import LOCK

if TYPE_CHECKING:
    from .engine import Engine
    from .life import Life


class Host:
    """The books of one runner; used on the engine only."""

    def __init__(self, *, guest: bool) -> None:
        self.owners: dict[str, Life] = {}
        self._generations: dict[str, int] = {}
        self._guest = guest
        self._engine: Engine | None = None

    def next_generation(self, name: str) -> int:
        """A number that no earlier worker of that name had."""
        self._generations[name] = self._generations.get(name, 0) + 1
        return self._generations[name]

    def settle(self, runner: Runner, engine: Engine) -> None:
        """Get ready for that engine; kept alive for a runner that somebody gave us, which may be tied to its loop."""
        if self._engine is engine:
            return
        self._engine = engine
        if self._guest:
            engine.admit_guest()
            weakref.finalize(runner, engine.dismiss_guest).atexit = False


# A host must not hold its runner, or neither would ever go.
_hosts: weakref.WeakKeyDictionary[Runner, Host] = weakref.WeakKeyDictionary()
_default: tuple[Runner, Host] | None = None


def host_of(runner: Runner | None) -> tuple[Runner, Host]:
    """The runner and its host; None is the runner of this process, which all pools share."""
    global _default
    with LOCK:
        if runner is not None:
            host = _hosts.get(runner)
            if host is None:
                host = _hosts[runner] = Host(guest=True)
            return runner, host
        if _default is None:
            from poolctl.runners.inline import InlineRunner

            _default = InlineRunner(), Host(guest=False)
        return _default


def _forget_in_child() -> None:
    global _default
    _default = None
    _hosts.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
