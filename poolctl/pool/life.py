"""What one server does now: started, swapped, stopped and watched over, always on the engine's loop.

Decided by nobody but the callers: there are no restart policies here, those are the supervisor's. Attributes may
be read from any thread; they are written on the loop only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.runners.protocol import Placement
from poolctl.states import State, Status

from . import engine
from .berth import Berth, every
from .orders import Orders
from .record import Record
from .wellness import Wellness

if TYPE_CHECKING:
    from .server import Server


class Life:
    """The running side of a server; made at its first start."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.epoch = engine.epoch
        self.state = State.STOPPED
        self.ready = False
        self.message = ""
        self.placements: tuple[Placement, ...] = ()
        self.record = Record(server._home.clock)
        self.wellness = Wellness(self._note)
        self.berth = Berth(self)
        self.orders = Orders(self.berth.error)
        self._config: ServerConfig  # what runs, furnished by the pool
        self._applied: ServerConfig | None = None  # the same, as the server had it

    def __repr__(self) -> str:
        return f"<Life of {self.server.name} {self.state}>"

    @property
    def stale(self) -> bool:
        """Whether what runs has an older configuration than the server."""
        return self.state is State.RUNNING and self._applied is not self.server.config

    @property
    def well(self) -> bool:
        """Whether it is ready, and its probes do not say the contrary."""
        return self.ready and self.wellness.status is not Status.KO

    @property
    def busy(self) -> bool:
        """Whether there is something to stop."""
        return self.state not in (State.STOPPED, State.FAILED) or self.orders.pending

    # What others ask for. Each order waits for its turn.

    def order_stop(self, timeout_seconds: float | None = None) -> concurrent.futures.Future[None]:
        """The future of a stop that has been ordered; from any thread, does not block."""
        return self.orders.stop(partial(self._stop, timeout_seconds))

    async def start(self, timeout_seconds: float | None, stays: Callable[[Server], bool]) -> None:
        """Running and answering, with the configuration of now, if it `stays` until its turn. Raises ServerError."""
        await self._within(timeout_seconds, self.orders.start(partial(self._come_up, stays, anew=False)))

    async def restart(self, timeout_seconds: float | None, stays: Callable[[Server], bool]) -> None:
        """Running and answering anew; the old instance stops accepting only when the new one answers."""
        await self._within(timeout_seconds, self.orders.start(partial(self._come_up, stays, anew=True)))

    async def _come_up(self, stays: Callable[[Server], bool], *, anew: bool) -> None:
        if not stays(self.server):
            raise self.berth.error("has left its pool")
        if self.state is not State.RUNNING:
            await self.orders.attempt(self._launch())
        elif anew or self.stale:
            await self.orders.attempt(self._swap())

    async def _within(self, timeout_seconds: float | None, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await work
        except TimeoutError as error:
            problem = self.berth.error(f"was not ready within {timeout_seconds:g} s")
            if self.state is State.STOPPED:
                self._set(State.FAILED, problem.message)
            raise problem from error

    # Starting and swapping.

    async def _launch(self) -> None:
        self._set(State.STARTING)
        try:
            config = self.server._home.prepare(self.server.config)
            wanted = self.server.config
            await self.berth.take(config)
            try:
                placements = await self.berth.bring_up(config, self.server._home.values)
            except BaseException:
                await self.berth.leave()
                raise
        except BaseException as error:
            self._set_ended(error)
            raise
        await self._adopt(config, wanted, placements)

    async def _swap(self) -> None:
        """Replace what runs by a new generation on the same listener."""
        try:
            config = self.server._home.prepare(self.server.config)
            wanted = self.server.config
            if not (config.may_overlap and self._config.may_overlap):
                placements = await self._replace_in_sequence(config)
            else:
                placements = await self.berth.bring_up(config, self.server._home.values)
        except ServerError as error:
            if self.state is State.RUNNING:
                error.message += "; the old instance serves on"
                error.args = (error.message,)
            raise
        self.berth.retire(self.placements)
        told = [asyncio.Event() for _ in self.placements]
        for placement, event in zip(self.placements, told, strict=True):
            self.orders.to_await(self.berth.see_off(placement, self._config, event))
        await self._adopt(config, wanted, placements)
        await every(*(event.wait() for event in told))

    async def _replace_in_sequence(self, config: ServerConfig) -> tuple[Placement, ...]:
        """End the old one first, for apps that must not run twice: connections wait in the listener."""
        self._set(State.STARTING)
        old, self.placements = self.placements, ()
        self.berth.retire(old)
        try:
            leaving = [self.orders.to_await(self.berth.see_off(each, self._config)) for each in old]
            await asyncio.shield(every(*map(asyncio.wrap_future, leaving)))
            await self.berth.open(config)
            return await self.berth.bring_up(config, self.server._home.values)
        except BaseException as error:
            await self.berth.leave()
            self._farewell()
            self._set_ended(error)
            raise

    async def _adopt(
        self, config: ServerConfig, wanted: ServerConfig, placements: tuple[Placement, ...]
    ) -> None:
        self._config, self._applied = config, wanted
        self.placements = placements
        for placement in placements:
            engine.engine().spawn(self._watch(placement))
        if config.job:  # ready means that it has ended
            self.placements = ()
            await self.berth.leave()
            self._set(State.STOPPED, ready=True)
            return
        engine.engine().on_exit[self] = self._leave
        self._set(State.RUNNING, ready=True)
        if self.server._home.context is not None:
            self.server._home.context.attach(self, self.order_stop)

    # Stopping.

    async def _stop(self, timeout_seconds: float | None) -> None:
        leaving = [*self.placements, *self.berth.retiring]
        if not leaving:
            self._set(State.STOPPED)
            return
        self._set(State.STOPPING)
        limit = self._config.stop_timeout
        if timeout_seconds is not None:
            limit = min(limit, timeout_seconds)
        try:
            # The workers stop accepting before the listener is closed.
            ending = [asyncio.ensure_future(self.berth.dismiss(each, limit)) for each in leaving]
            await asyncio.sleep(0)
            await self.berth.leave()
            await every(*ending)
        except ServerError as error:
            self._set(State.FAILED, error.message)  # its workers stay known: stop may be tried again
            raise
        self.placements = ()
        self._farewell()
        self._set(State.STOPPED)

    async def _leave(self) -> None:
        """The process is about to end."""
        async with self.orders.turn():
            await self._stop(None)

    def _farewell(self) -> None:
        engine.engine().on_exit.pop(self, None)
        if self.server._home.context is not None:
            self.server._home.context.detach(self)

    # Watching and telling.

    async def _watch(self, placement: Placement) -> None:
        well, message = await self.berth.watch(placement)
        if placement not in self.placements or self.orders.stops:
            return  # it was told to end
        async with self.orders.turn():
            if placement not in self.placements or self.state is not State.RUNNING:
                return
            self.placements = tuple(each for each in self.placements if each != placement)
            if self.placements:
                self.message = message
                self.wellness.follow(self.placements)
                return
            await self.berth.leave()
            self._farewell()
            self._set(State.STOPPED if well else State.FAILED, message)

    def _set_ended(self, error: BaseException) -> None:
        if isinstance(error, ServerError):
            self._set(State.FAILED, error.message)
        else:
            self._set(State.STOPPED)  # cancelled

    def _set(self, state: State, message: str = "", *, ready: bool = False) -> None:
        self.state = state
        self.ready = ready
        self.message = message
        self.wellness.follow(self.placements if state is State.RUNNING else ())
        self._note(anew=ready)

    def _note(self, *, anew: bool = False) -> None:
        rising, falling = self.wellness.moving(self.state)
        self.record.note(self.well, anew=anew, rising=rising, falling=falling)
