"""The runners by name; a runner's module is imported only when it is chosen. Standard library only.

A runner's module has `make(site)`, which creates the Runner for a supervisor, and optionally:
- `companions(files, directory, env, without)`: returns, by name, the programs to start with a pool's keeper, without
  the environment variables `without`. The keeper stores a socket to each program under the program's name.
- `orphans_exist(directory)` and `find_orphans(directory)`: look for orphans, which are workers that continue to serve
  after their keeper and supervisor have died.
"""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.feature import features
from poolctl.keeper import pool_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType
    from typing import Any, Protocol

    from poolctl.keeper.spawn import CompanionSpec
    from poolctl.keeper.wire import Message

    from .helper_process import Helpers
    from .process_link import KeeperLink
    from .runner_protocol import Runner

    class Orphan(Protocol):
        """A worker whose keeper and supervisor have died. Every call may block.

        `pid` is its process, and `uid` the user of that process. `said` is the worker's own report: server, ready_at
        and more. The report may be forged: the caller checks that `uid` is the server's user.
        """

        pid: int
        uid: int
        said: Message

        def ask_to_end(self) -> None:
            """Ask the worker to finish its requests and end."""

        def await_end(self, timeout_seconds: float) -> bool:
            """Wait for the worker to end; False if it has not ended in time."""

        def kill(self) -> None:
            """Kill the worker and its process group at once."""

        def close(self) -> None:
            """Close the descriptors; the worker continues to serve."""


VARIABLE = "POOLCTL_RUNNER"
_MODULES = {"local": "poolctl.runners.local"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerContext:
    """The pool that a runner works for. `open_files` are the soft and hard open-files limits of its processes.

    A runner adds its helpers to `helpers`. `directory` contains the pool's runtime files. `environments` holds, by
    server name, the environments that replace the pool's own (`restart --env`); it changes while the pool runs.
    """

    keeper: KeeperLink
    keeper_pid: int
    helpers: Helpers
    open_files: tuple[int, int]
    directory: str
    logs_directory: str
    environments: Mapping[str, Mapping[str, str]]


class UnknownRunner(Exception):
    """POOLCTL_RUNNER does not name a runner; the text says why."""


def make_runner(env: Mapping[str, str], site: RunnerContext) -> Runner:
    """Create the runner that the environment selects. Raises UnknownRunner."""
    runner: Runner = _import_runner(env).make(site)
    return runner


def companions(
    env: Mapping[str, str], files: Sequence[str], directory: str, withheld_variables: Sequence[str]
) -> dict[str, CompanionSpec]:
    """Return the programs that the runner needs, by name, to be started with the pool's keeper.

    The keeper stores a socket to each program under the program's name. `files` are the pool's configuration files.
    Variables in `withheld_variables` are removed from the programs' environments. Raises UnknownRunner.
    """
    find = getattr(_import_runner(env), "companions", None)
    found: dict[str, CompanionSpec] = (
        find(files, directory, env, withheld_variables) if find is not None else {}
    )
    return found


def has_orphans(env: Mapping[str, str], directory: str) -> bool:
    """Whether workers or feature processes of the pool in this directory continue without keeper and supervisor.

    Workers of an unknown runner are not found.
    """
    processes = [each.process for each in features() if each.process is not None]
    if any(pool_files.find_listeners(directory, each.socket) for each in processes):
        return True
    exist = _runner_function(env, "orphans_exist")
    return exist is not None and bool(exist(directory))


def find_orphans(env: Mapping[str, str], directory: str) -> list[Orphan]:
    """The orphaned workers of this directory's pool; empty for an unknown runner. The caller closes them. Blocks."""
    find = _runner_function(env, "find_orphans") if has_orphans(env, directory) else None
    found: list[Orphan] = [] if find is None else find(directory)
    return found


def _runner_function(env: Mapping[str, str], function: str) -> Callable[[str], Any] | None:
    """The function of this name in the runner's module; None if the runner is unknown or has no such function."""
    try:
        found: Callable[[str], Any] | None = getattr(_import_runner(env), function, None)
    except UnknownRunner:
        return None
    return found


def _import_runner(env: Mapping[str, str]) -> ModuleType:
    """The module of the runner that POOLCTL_RUNNER names, by default the local runner. Raises UnknownRunner."""
    name = env.get(VARIABLE) or "local"
    try:
        # importlib.import_module would import `warnings` too
        module: ModuleType = __import__(_MODULES.get(name, name), fromlist=["make"])
    except (ImportError, TypeError, ValueError) as error:
        raise UnknownRunner(
            f"{VARIABLE} names the runner {name!r}, which cannot be imported: {error}"
        ) from error
    if not hasattr(module, "make"):
        raise UnknownRunner(f"{VARIABLE} names {name!r}, which is no runner: it has no make()")
    return module
