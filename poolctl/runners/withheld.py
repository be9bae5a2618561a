"""The variables of this process's environment that no program of a pool is given.

The environment belongs to the process, and so does this: all runners in it share it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from poolctl.config.secrets import values_of

_names: set[str] = set()


def withhold(names: Iterable[str], *, only: bool = False) -> None:
    """Give these variables to no program that is started from now on; with `only` these and no others."""
    if only:
        _names.clear()
    _names.update(names)


def present() -> list[str]:
    """The names of those that are set, in order."""
    return sorted(_names & os.environ.keys())


def values() -> list[str]:
    """What they hold."""
    return values_of(_names, os.environ)


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (default: this process's) without them."""
    return {
        name: value for name, value in (os.environ if base is None else base).items() if name not in _names
    }
