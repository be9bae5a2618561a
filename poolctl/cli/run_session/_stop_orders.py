"""The reasons to stop `run`: signals, a closed output, the first exit of a server, and the stop timeout."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

from ._loop import received_signals

T = TypeVar("T")


class StopOrdered(Exception):
    """An order has interrupted the work in progress. `number` is the order's signal number (see StopOrders)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopOrders:
    """Orders to stop. Each order has the number of a signal, and interrupts the work in progress.

    SIGPIPE stands for the loss of the output's reader, SIGALRM for the end of the stop timeout, and SIGCHLD for the
    first exit of a server with --abort-on-exit. The user's Ctrl-C often ends the reader as well (`run | tee run.log`).
    Therefore the loss counts only as the first order, and the next signal replaces it as the reason for the stop.
    """

    def __init__(self, numbers: Collection[int], reload: Callable[[], object] | None = None) -> None:
        """`numbers` are the signals, which are blocked. With `reload`, SIGHUP calls it instead of stopping."""
        self._numbers = numbers
        self._reload = reload
        self._orders: asyncio.Queue[int] = asyncio.Queue()
        self._is_stopping = False
        self.reader_is_gone = False  # without a signal since then
        self.interrupted = False  # by SIGINT, after the reader was gone

    def add_signal(self, number: int) -> None:
        """Handle a signal that has arrived."""
        if number == signal.SIGHUP and self._reload is not None:
            self._reload()
        elif self.reader_is_gone:
            self.reader_is_gone, self.interrupted = False, number == signal.SIGINT
        else:
            self._add(number)

    def add_lost_reader(self) -> None:
        """Stop, unless already stopping, because nothing reads the output any longer."""
        if not self._is_stopping:
            self.reader_is_gone = True
            self._add(signal.SIGPIPE)

    def add_first_end(self) -> None:
        """Stop, unless already stopping, because a server has ended without an order."""
        if not self._is_stopping:
            self._add(signal.SIGCHLD)

    def add_end_of_time(self) -> None:
        """Interrupt the work in progress, because the stop takes too long."""
        self._add(signal.SIGALRM)

    def _add(self, number: int) -> None:
        self._is_stopping = True
        self._orders.put_nowait(number)

    async def unless_ordered(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. An order cancels the work, and raises StopOrdered.

        Orders and signals that arrive between two calls apply to the second one.
        """
        if not self._orders.empty():
            work.close()
            raise StopOrdered(self._orders.get_nowait())
        with received_signals(self._numbers, lambda came: self.add_signal(came.si_signo)):
            working, order = asyncio.ensure_future(work), asyncio.ensure_future(self._orders.get())
            try:
                await asyncio.wait((working, order), return_when=asyncio.FIRST_COMPLETED)
                if order.done():
                    raise StopOrdered(order.result())
                return working.result()
            finally:
                working.cancel()
                order.cancel()
                await asyncio.gather(working, order, return_exceptions=True)
