"""The host of each runner on the current engine; pools without a runner share the host of this process."""

from __future__ import annotations

import os
import weakref

from poolctl.runners.runner_protocol import Runner

from . import loop_thread
from .live_servers import Host
from .pool_context import Shared

# None of these may hold a runner, or it would never go: it is held by its host, which its servers hold while they run.
_hosts: weakref.WeakValueDictionary[int, Host] = weakref.WeakValueDictionary()
_tied: weakref.WeakKeyDictionary[Runner, loop_thread.Engine] = weakref.WeakKeyDictionary()
_own_runner: Runner | None = None


def host_of(shared: Shared) -> Host:
    """The host of a pool's runner on the current engine; pools without a runner share the host of this process."""
    global _own_runner
    current = loop_thread.engine()
    runner = shared.runner
    if runner is None:
        if _own_runner is None:
            from poolctl.runners.inline_runner import InlineRunner

            _own_runner = InlineRunner()
        runner = _own_runner
    elif _tied.get(runner) is not current:
        # It may be tied to the loop, on which its user may call it as well.
        _tied[runner] = current
        current.hold()
        weakref.finalize(runner, current.release).atexit = False
    host = _hosts.get(id(runner))
    if host is None or host.engine is not current or host.core.runner is not runner:
        host = _hosts[id(runner)] = Host(runner, shared.clock, current)
    return host


def _forget_in_child() -> None:
    global _own_runner
    _own_runner = None
    _hosts.clear()
    _tied.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
