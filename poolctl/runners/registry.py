"""The runners by name; none is imported before it is chosen. Standard library only.

A runner's module has `make(site)`, which gives the Runner of a supervisor (see RunnerSite), and may have
`companions(files, directory, env, without)`: the programs that are started with a pool's keeper, by the names under
which its store keeps the links to them.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from poolctl.keeper.spawn import Companion

    from .protocol import Runner
    from .site import RunnerSite

VARIABLE = "POOLCTL_RUNNER"
_MODULES = {"local": "poolctl.runners.local.registration"}


class UnknownRunner(Exception):
    """The variable names no runner; the text says why."""


def make_runner(env: Mapping[str, str], site: RunnerSite) -> Runner:
    """The runner of a supervisor. Raises UnknownRunner."""
    runner: Runner = _module(env).make(site)
    return runner


def companions(
    env: Mapping[str, str], files: Sequence[str], directory: str, without: Sequence[str]
) -> dict[str, Companion]:
    """The programs that are started with the keeper, without these environment variables. Raises UnknownRunner."""
    find = getattr(_module(env), "companions", None)
    found: dict[str, Companion] = find(files, directory, env, without) if find is not None else {}
    return found


def _module(env: Mapping[str, str]) -> Any:
    """The module of the runner that POOLCTL_RUNNER names: built in, or a dotted name; the local one by default."""
    name = env.get(VARIABLE) or "local"
    try:
        module = importlib.import_module(_MODULES.get(name, name))
    except (ImportError, ValueError) as error:
        raise UnknownRunner(
            f"{VARIABLE} names the runner {name!r}, which cannot be imported: {error}"
        ) from error
    if not hasattr(module, "make"):
        raise UnknownRunner(f"{VARIABLE} names {name!r}, which is no runner: it has no make()")
    return module
