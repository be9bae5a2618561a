"""What others do at the worst moment: just before this process opens, binds, renames or removes something."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

_actions: dict[str, Callable[..., object]] = {}


def _act(event: str, arguments: tuple[object, ...]) -> None:
    if event in _actions:
        _actions[event](*arguments)


@functools.cache
def _watch() -> None:
    sys.addaudithook(_act)  # which cannot be removed


@contextlib.contextmanager
def before(event: str, act: Callable[..., object]) -> Iterator[None]:
    """Call `act` before each event of this name (sys.audit), such as `os.remove`, with the event's arguments."""
    _watch()
    _actions[event] = act
    try:
        yield
    finally:
        del _actions[event]
