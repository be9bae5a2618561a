"""Opens and closes the listeners of the servers, and shows in the entries what came of it."""

from __future__ import annotations

from collections.abc import Callable

from poolctl.config import ServerConfig
from poolctl.errors import PoolStartError
from poolctl.runners.protocol import Exit, Runner

from .addresses import Addresses
from .decide import Listener
from .exits import Deaths, explained
from .state import Entry


class Doors:
    """`touch` is told of every change."""

    def __init__(
        self, runner: Runner, addresses: Addresses, deaths: Deaths, touch: Callable[[Entry], None]
    ) -> None:
        self._runner = runner
        self._addresses = addresses
        self._deaths = deaths
        self._touch = touch

    async def open(self, entry: Entry) -> None:
        """Open the listener that the entry is bound to."""
        assert entry.bound is not None
        try:
            await self._runner.open(entry.bound)
        except Exception as error:
            entry.listener, entry.bound = Listener.CLOSED, None
            if entry.wanted:  # else it was stopped meanwhile, and nothing has failed
                message, hint = explained(error)
                self._deaths.note(entry, message, hint, PoolStartError, of_a_worker=False)
                if not self._deaths.go_back(entry):
                    self._deaths.died(entry, Exit(message=message), was_ready=False)
        else:
            entry.listener = Listener.OPEN
            self._addresses.opened(entry)
        self._touch(entry)

    async def close(self, entry: Entry) -> None:
        """Close the listener of the entry, unless another server is to have it."""
        assert entry.bound is not None
        await self.release(entry, entry.bound)
        entry.listener, entry.bound, entry.vacates = Listener.CLOSED, None, False
        self._touch(entry)

    async def release(self, entry: Entry, held: ServerConfig) -> None:
        """Close a listener that the entry had before, unless another server is to have it."""
        if self._addresses.give_up(entry, held):
            await self._runner.close(held.key)
        if held in entry.releasing:
            entry.releasing.remove(held)
        self._touch(entry)
