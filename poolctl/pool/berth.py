"""A server's place on its runner: the address that it owns there, and the workers that are brought up on it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.runners.protocol import Placement, Runner, WorkerFailed, app_state

from . import engine
from .host import Host, host_of

if TYPE_CHECKING:
    from .life import Life

# What a runner may take beyond the timeout it was given before a stop counts as failed.
_BEYOND_SECONDS = 6.0


class Berth:
    """Carries out what its server's life decides; raises ServerError, with the server's name in it."""

    def __init__(self, life: Life) -> None:
        self.endpoints: tuple[str, ...] = ()
        self.retiring: set[Placement] = set()
        self._life = life
        self._server = life.server
        self._runner: Runner
        self._host: Host

    async def take(self, config: ServerConfig) -> None:
        """Own the address, its listener open; a predecessor that is on its way out is awaited."""
        self._runner, self._host = host_of(self._server._home.runner)
        self._host.settle(self._runner, engine.engine())
        owners = self._host.owners
        while (owner := owners.get(config.key)) is not None and owner is not self._life:
            if not owner.orders.stops:
                who = f"{owner.server.name!r} of this process"
                raise self.error(f"its address is in use by {who}", "stop that one first")
            await owner.orders.turn_over()
        owners[config.key] = self._life
        try:
            await self.open(config)
        except BaseException:
            await self.leave()
            raise

    async def open(self, config: ServerConfig) -> None:
        """Open the listener, if it is not open yet."""
        try:
            self.endpoints = (await self._runner.open(config)).addresses
        except Exception as error:
            raise self._translated(error) from _cause(error)

    async def leave(self) -> None:
        """Close the listener and give up the address."""
        key = self._server.bind
        self.endpoints = ()
        if self._host.owners.get(key) is self._life:
            await self._runner.close(key)
            del self._host.owners[key]

    async def bring_up(self, config: ServerConfig, values: Mapping[str, Any]) -> tuple[Placement, ...]:
        """Workers of a new generation, all of which answer; or none is left and the error says why."""
        app_state.set(values)
        generation = self._host.next_generation(config.name)
        placed: list[Placement] = []
        try:
            if config.preload:
                await self._runner.prepare(config, time.monotonic())
            async with asyncio.TaskGroup() as group:
                for index in range(1 if config.job else config.workers):
                    group.create_task(self._bring_up_one(config, generation, index, placed))
        except BaseException as error:
            why = self._life.wellness.message
            await _to_the_end(engine.engine().spawn(self._clear_away(placed)))
            first = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            if isinstance(first, TimeoutError):
                late = f"was not ready within {config.start_timeout:g} s"
                raise self.error(f"{late}: {why}" if why else late) from first
            if isinstance(first, Exception):
                raise self._translated(first) from _cause(first)
            raise
        return tuple(sorted(placed, key=lambda placement: placement.index))

    async def _bring_up_one(
        self, config: ServerConfig, generation: int, index: int, placed: list[Placement]
    ) -> None:
        placement = await self._place(config, generation, index, placed)
        # The clock starts when it begins: waiting for its turn is not the application's slowness.
        await self._runner.begun(placement)
        async with asyncio.timeout(None if config.job else config.start_timeout):
            await self._runner.ready(placement)
            await self._life.wellness.admit(self._runner, config, placement)

    async def _place(
        self, config: ServerConfig, generation: int, index: int, placed: list[Placement]
    ) -> Placement:
        placing = engine.engine().spawn(self._runner.place(config, generation, index))
        try:
            await asyncio.shield(placing)
        finally:
            # A fork cannot be called back: who gives up waiting for it must still know it, to end it.
            await _to_the_end(placing)
            if not placing.cancelled() and placing.exception() is None:
                placed.append(placing.result())
        return placing.result()

    async def _clear_away(self, placed: list[Placement]) -> None:
        self._life.wellness.drop(placed)
        await asyncio.gather(*(self.dismiss(each, 0) for each in placed), return_exceptions=True)
        await asyncio.gather(*(self._runner.watch(each) for each in placed), return_exceptions=True)

    def retire(self, placements: Iterable[Placement]) -> None:
        """Know them as leaving from now on: `see_off` begins later, and a stop may come in between."""
        self.retiring.update(placements)

    async def see_off(
        self, placement: Placement, config: ServerConfig, told: asyncio.Event | None = None
    ) -> None:
        """The end of a worker that was replaced. With `told`, set once it accepts no more, it drains first."""
        try:
            if told is not None:
                try:
                    # A busy one may take a new connection, and answer with the old code, after it was told.
                    await self._runner.leave(placement)
                finally:
                    told.set()
                await self._runner.drain(placement)
            await self.dismiss(placement, config.stop_timeout)
        finally:
            self.retiring.discard(placement)

    async def dismiss(self, placement: Placement, timeout_seconds: float) -> None:
        """End the worker; killed after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds + _BEYOND_SECONDS):
                await self._runner.stop(placement, timeout_seconds)
        except TimeoutError as error:
            hint = f"kill -9 {placement.pid}" if placement.pid is not None else ""
            raise self.error(f"could not be ended ({placement.where})", hint) from error
        except Exception as error:
            raise self._translated(error) from _cause(error)

    async def watch(self, placement: Placement) -> tuple[bool, str]:
        """Return when the worker has ended: whether all was well, and how it was."""
        exit_ = await self._runner.watch(placement)
        return exit_.ok, exit_.message

    def error(self, message: str, hint: str = "") -> ServerError:
        """A failure of this server."""
        return ServerError(message, name=self._server.name, bind=self._server.bind, hint=hint)

    def _translated(self, error: Exception) -> ServerError:
        if isinstance(error, (ServerError, WorkerFailed)):
            return self.error(error.message, error.hint)
        return self.error(f"{type(error).__name__}: {error}")


def _cause(error: Exception) -> BaseException | None:
    return error.__cause__ if isinstance(error, ServerError) else error


async def _to_the_end(task: asyncio.Task[Any]) -> None:
    """Wait for it however often the waiter is cancelled: what comes next relies on it."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})


async def every(*work: Any) -> None:
    """Wait for all of it, whatever fails, then raise the first failure."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
