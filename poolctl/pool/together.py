"""Start, stop and restart of many servers at once: all are attempted, every failure is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from poolctl.errors import (
    PoolError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    ServerError,
)
from poolctl.states import State
from poolctl.units import parse_duration

from .prerequisites import prerequisites

if TYPE_CHECKING:
    from .life import Life
    from .server import Server

Timeout = float | timedelta | str | None
Act = Callable[["Server"], Awaitable[None]]
# Whether a server is still where it was when the order was given: who leaves a pool meanwhile is not started by it.
Stays = Callable[["Server"], bool]


async def start(servers: Sequence[Server], timeout: Timeout, stays: Stays | None = None) -> None:
    """Return when all answer, dependencies first; disabled ones are passed over, unless it is one by itself."""
    limit = seconds(timeout)

    async def act(server: Server) -> None:
        if stays is None:
            await server._alive().start(limit, _wherever)
        elif stays(server) and await _enabled(server):
            await _unless_gone(server, stays, server._alive().start(limit, stays))

    errors = await _all(servers, act, prerequisites(servers))
    _raise(errors, PoolStartError, "did not start", len(servers))


async def restart(servers: Sequence[Server], timeout: Timeout, stays: Stays | None = None) -> None:
    """Return when all have been replaced, dependencies first; disabled ones as in `start`."""
    limit = seconds(timeout)

    async def act(server: Server) -> None:
        if stays is None:
            await server._alive().restart(limit, _wherever)
        elif stays(server) and await _enabled(server):
            await _unless_gone(server, stays, server._alive().restart(limit, stays))

    errors = await _all(servers, act, prerequisites(servers))
    _raise(errors, PoolRestartError, "did not restart", len(servers))


async def stop(servers: Sequence[Server], timeout: Timeout) -> None:
    """Return when all have ended, each before what it depends on."""
    limit = seconds(timeout)
    before: dict[Server, list[Server]] = {}
    for server, needed in prerequisites(servers).items():
        for other in needed:
            before.setdefault(other, []).append(server)

    async def act(server: Server) -> None:
        life = server._living()
        if life is not None:
            await _stopped(life, limit)

    _raise(await _all(servers, act, before), PoolStopError, "did not stop", len(servers))


def seconds(timeout: Timeout) -> float | None:
    """The timeout in seconds. Raises PoolParamError."""
    if timeout is None:
        return None
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise PoolParamError(f"timeout: {error}") from error


def _wherever(server: Server) -> bool:
    return True


async def _unless_gone(server: Server, stays: Stays, work: Awaitable[None]) -> None:
    """Carry it out; that it failed is nobody's matter once the server has left."""
    try:
        await work
    except ServerError:
        if stays(server):
            raise


async def _enabled(server: Server) -> bool:
    """Whether it may run; one that was disabled while it ran is stopped."""
    if not server.config.disabled:
        return True
    life = server._living()
    if life is not None and life.state is State.RUNNING:
        await _stopped(life, None)
    return False


async def _stopped(life: Life, limit: float | None) -> None:
    # Shielded: whoever gives up waiting does not leave a server half stopped.
    await asyncio.shield(asyncio.wrap_future(life.order_stop(limit)))


async def _all(servers: Sequence[Server], act: Act, before: dict[Server, list[Server]]) -> list[ServerError]:
    """Every failure of `act`, in the servers' order; each runs after those `before` it, whatever became of them."""
    tasks: dict[Server, asyncio.Task[None]] = {}

    async def attempt(server: Server) -> None:
        awaited = [tasks[other] for other in before.get(server, ())]
        if awaited:
            await asyncio.wait(awaited)
        await act(server)

    loop = asyncio.get_running_loop()
    for server in servers:
        tasks[server] = loop.create_task(attempt(server))
    results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    return [
        _as_error(server, result) for server, result in zip(tasks, results, strict=True) if result is not None
    ]


def _as_error(server: Server, error: BaseException) -> ServerError:
    if isinstance(error, ServerError):
        return error
    message = (
        "was cancelled" if isinstance(error, asyncio.CancelledError) else f"{type(error).__name__}: {error}"
    )
    wrapped = ServerError(message, name=server.name, bind=server.bind)
    wrapped.__cause__ = error
    return wrapped


def _raise(errors: list[ServerError], kind: type[PoolError], what: str, count: int) -> None:
    if not errors:
        return
    if count == 1:
        raise kind(f"{errors[0].name} {what}", errors)
    raise kind(f"{len(errors)} of {count} servers {what}", errors)
