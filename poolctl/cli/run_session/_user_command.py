"""The user's command of `run -- CMD`: its environment, and its process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from poolctl.address import AddressError, parse
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef
from poolctl.config import Finding, address_parts
from poolctl.control.answers import ErrorEntry, Item
from poolctl.exit_codes import INVALID_CONFIGURATION, NOT_EXECUTABLE, NOT_FOUND
from poolctl.file_access import why_execution_failed
from poolctl.keeper.left_children import SI_KERNEL, end_processes, left_children, reap_and_find_status
from poolctl.keeper.reap import children, deliver
from poolctl.platform import subreaper

from ._loop import in_thread, received_signals
from .signals import FORWARDED_SIGNALS

# Python ignores these signals; programs expect the defaults.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)
# How long processes that a command has left behind may take to end.
LEFT_SECONDS = 5.0


async def run_to_end(
    path: str,
    command: list[str],
    env: Mapping[str, str],
    *,
    stdout: int | None = None,
    pool_ended: Callable[[], Awaitable[object]] | None = None,
    unwanted: Callable[[], bool] = lambda: False,
) -> int:
    """Run the user's command, pass signals on to it, and return its exit status (128 + N after signal N).

    Its orphans get SIGTERM, and SIGKILL after LEFT_SECONDS. The command gets SIGTERM once `pool_ended` returns, if
    `unwanted` is then true. `stdout` replaces its standard output. Raises Failure (exit 126 or 127) if
    the command cannot be run.
    """
    earlier_children = set(children())
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def receive(info: signal.struct_siginfo) -> None:
        if info.si_signo == signal.SIGCHLD:
            if (status := reap_and_find_status(pid, earlier_children)) is not None:
                ended.set_result(status)
        elif info.si_code != SI_KERNEL:
            send(info.si_signo)

    def send(number: int) -> None:
        with contextlib.suppress(PermissionError):  # such as sudo(8)
            deliver(partial(os.kill, pid), number)

    async def end_if_unwanted(pool_ended: Callable[[], Awaitable[object]]) -> None:
        await pool_ended()
        if unwanted() and not ended.done():
            send(signal.SIGTERM)

    with subreaper():
        with received_signals((signal.SIGCHLD, *FORWARDED_SIGNALS), receive):
            pid = _spawn(path, command, env, stdout)
            watching = asyncio.ensure_future(end_if_unwanted(pool_ended)) if pool_ended is not None else None
            status = await ended
            if watching is not None:
                watching.cancel()
        await in_thread(end_processes, lambda: left_children(earlier_children), signal.SIGTERM, LEFT_SECONDS)
    return status


def _spawn(path: str, command: list[str], env: Mapping[str, str], stdout: int | None) -> int:
    actions = [] if stdout is None else [(os.POSIX_SPAWN_DUP2, stdout, 1)]
    try:
        return os.posix_spawn(path, command, env, file_actions=actions, setsigmask=(), setsigdef=_RESET)
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        why = why_execution_failed(command[0], env.get("PATH", os.defpath), error)
        raise Failure(Outcome.failed(code, f"{command[0]}: {why}")) from None


def command_environment(pool: PoolRef, items: Sequence[Item]) -> dict[str, str]:
    """This process's environment with POOLCTL_CONFIG, and the URL and port of each server.

    Raises Failure (exit 5) if variables of two servers would have the same name.
    """
    reachable = [item for item in items if item.state != "disabled" and item.expose]
    by_name: dict[str, Item] = {}
    for item in reachable:
        if (first := by_name.setdefault(word(item.name), item)) is not item:
            raise Failure(_same_variable_outcome(pool, first, item))
    env = {"POOLCTL_CONFIG": pool.files[0]} if pool.files else {}
    for item in reachable:
        try:
            parts = address_parts(item.expose, parse(item.address or item.bind))
        except AddressError:
            parts = {"url": item.expose}
        if item.address and item.expose == item.bind:  # an inherited socket has no other address
            parts["url"] = f"http://{item.address}"
        name = word(item.name)
        env |= {f"POOLCTL_{part.upper()}_{name}": parts[part] for part in ("url", "port") if part in parts}
    return {**os.environ, **env}


def word(name: str) -> str:
    """The name of a server as a part of a variable name: `users-v1` becomes `USERS_V1`."""
    return re.sub("[^A-Z0-9]", "_", name.upper())


def _same_variable_outcome(pool: PoolRef, first: Item, second: Item) -> Outcome:
    variable = f"POOLCTL_URL_{word(first.name)}"
    message = f"{variable} of the command would be the address of {first.name!r} and of {second.name!r}"
    finding = Finding(("name",), message, "rename one of them", second.name)
    config = load(pool)
    problems = config.located((server, finding) for server in config if server.name == second.name)
    if not problems:  # a server added live
        return Outcome.failed(INVALID_CONFIGURATION, message, finding.hint)
    return Outcome(errors=[ErrorEntry.of(problem) for problem in problems], exit_code=INVALID_CONFIGURATION)
