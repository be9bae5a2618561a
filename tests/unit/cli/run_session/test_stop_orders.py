"""The orders that stop `run`, and what each of them ends."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from poolctl.cli.run_session._stop_orders import StopOrdered, StopOrders
from poolctl.cli.run_session.signals import blocked_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _blocked() -> Iterator[None]:
    with blocked_signals(NUMBERS):
        yield


def send(number: int) -> None:
    """A signal to this thread: others of the test runner do not block it."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


async def ended_by(orders: StopOrders, *acts: Callable[[], object]) -> int:
    """The number of the order that ends an endless work in which these acts happen; 0 if none does."""

    async def act() -> int:
        for each in acts:
            each()
            await asyncio.sleep(0.01)
        return 0

    try:
        return await orders.unless_ordered(act())
    except StopOrdered as order:
        return order.number


async def test_each_signal_ends_what_is_being_done() -> None:
    orders = StopOrders(NUMBERS)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        assert await ended_by(orders, lambda number=number: send(number)) == number
    assert await ended_by(orders, orders.add_end_of_time) == signal.SIGALRM
    assert await ended_by(orders) == 0
    assert not orders.interrupted


def test_work_that_an_order_ends_is_cancelled_and_its_error_without_an_order_is_raised() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        raise ValueError("wrong")

    async def work() -> None:
        orders = StopOrders(NUMBERS)
        asyncio.get_running_loop().call_later(0.01, send, signal.SIGTERM)
        with pytest.raises(StopOrdered):
            await orders.unless_ordered(wait())
        with pytest.raises(ValueError, match="wrong"):
            await orders.unless_ordered(fail())

    asyncio.run(work())
    assert ended == ["cancelled"]


def test_signal_between_two_works_ends_the_second_one_and_an_order_before_it_keeps_it_from_beginning() -> (
    None
):
    begun: list[str] = []

    async def begin() -> None:
        begun.append("work")
        await asyncio.sleep(60)

    async def work() -> None:
        orders = StopOrders(NUMBERS)
        send(signal.SIGTERM)
        with pytest.raises(StopOrdered):
            await orders.unless_ordered(begin())
        begun.clear()
        orders.add_signal(signal.SIGINT)
        with pytest.raises(StopOrdered):
            await orders.unless_ordered(begin())

    asyncio.run(work())
    assert begun == []


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
async def test_lost_reader_stops_it_and_the_first_signal_after_that_is_only_the_reason(
    number: int, interrupted: bool
) -> None:
    orders = StopOrders(NUMBERS)
    assert await ended_by(orders, orders.add_lost_reader) == signal.SIGPIPE
    assert orders.reader_is_gone
    assert await ended_by(orders, orders.add_lost_reader, lambda: send(number)) == 0
    assert (orders.reader_is_gone, orders.interrupted) == (False, interrupted)
    assert await ended_by(orders, lambda: send(signal.SIGTERM)) == signal.SIGTERM


async def test_lost_reader_is_no_order_after_a_signal_and_the_end_of_the_time_is_one_after_it() -> None:
    orders = StopOrders(NUMBERS)
    assert await ended_by(orders, lambda: send(signal.SIGINT)) == signal.SIGINT
    assert await ended_by(orders, orders.add_lost_reader) == 0
    assert not orders.reader_is_gone
    orders = StopOrders(NUMBERS)
    assert await ended_by(orders, orders.add_lost_reader) == signal.SIGPIPE
    assert await ended_by(orders, orders.add_end_of_time) == signal.SIGALRM


def test_hangup_is_a_reload_where_it_means_one() -> None:
    reloads: list[str] = []

    async def work() -> None:
        orders = StopOrders(NUMBERS, lambda: reloads.append("reload"))
        assert await ended_by(orders, lambda: send(signal.SIGHUP)) == 0

    asyncio.run(work())
    assert reloads == ["reload"]
