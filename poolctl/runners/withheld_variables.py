"""The environment variables that are withheld from programs, because they hold secrets of the pool itself.

All runners of this process share its environment and this list.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from poolctl.config import values_to_mask

_withheld_names: set[str] = set()


def withhold_variables(names: Iterable[str], *, only: bool = False) -> None:
    """Withhold these variables from programs that are started from now on; with `only`, no others are withheld."""
    if only:
        _withheld_names.clear()
    _withheld_names.update(names)


def withheld_variables() -> list[str]:
    """The names of the withheld variables that are set, sorted."""
    # Not `os.environ.keys() & _withheld_names`, which reads every variable: each new worker asks for this.
    return sorted(name for name in _withheld_names if name in os.environ)


def withheld_values() -> list[str]:
    """Return the values of the variables that are withheld from programs, except short values (see values_to_mask)."""
    return values_to_mask(_withheld_names, os.environ)


def environment_for_programs(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of `base`, by default of this process's environment, without the withheld variables."""
    return {
        name: value
        for name, value in (os.environ if base is None else base).items()
        if name not in _withheld_names
    }
