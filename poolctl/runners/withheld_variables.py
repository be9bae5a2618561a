"""Environment variables that are kept from the programs of a pool: they hold secrets of the pool itself.

The environment belongs to the process, and so does this list: all runners of the process share it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from poolctl.config import values_of

_names: set[str] = set()


def withhold(names: Iterable[str], *, only: bool = False) -> None:
    """Withhold these variables from programs that are started from now on; `only` replaces the earlier list."""
    if only:
        _names.clear()
    _names.update(names)


def present() -> list[str]:
    """The names of the withheld variables that are set, sorted."""
    # Not `os.environ.keys() & _names`, which reads every variable: each new worker asks for this.
    return sorted(name for name in _names if name in os.environ)


def values() -> list[str]:
    """The values of the withheld variables (see values_of)."""
    return values_of(_names, os.environ)


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of `base`, by default of this process's environment, without the withheld variables."""
    return {
        name: value for name, value in (os.environ if base is None else base).items() if name not in _names
    }
