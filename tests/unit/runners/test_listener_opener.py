"""Listeners that cannot be opened: who has their addresses is found for all at once, beside the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from poolctl.address import parse
from poolctl.listeners.listen_errors import ListenError
from poolctl.runners.listener_opener import Opener, in_daemon_thread
from tests.deadline import wait_until
from tests.sandbox import run_in_namespace


def messages(opener: Opener, listeners: Iterable[socket.socket]) -> list[str]:
    """What is said of each, when all are opened at once."""

    async def open_all() -> list[BaseException | list[socket.socket]]:
        addresses = [parse("{}:{}".format(*each.getsockname())) for each in listeners]
        return await asyncio.gather(*map(opener.listen, addresses), return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(open_all(), 60))
    return [error.message for error in found if isinstance(error, ListenError)]


def test_each_of_many_listeners_that_fail_together_names_the_holder() -> None:
    it = Opener()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(30)]
        for _ in range(2):  # each in a loop of its own
            said = messages(it, listeners)
            assert len(said) == 30
            assert all(each.endswith(f"(pid {os.getpid()})") for each in said)


@pytest.mark.parametrize("search", ["hangs", "fails"])
def test_listen_fails_without_the_holder_if_the_search_hangs_or_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, search: str
) -> None:
    file = tmp_path / "file"  # in place of one of this process's in /proc
    if search == "hangs":
        os.mkfifo(file)
    else:
        file.write_text("not a number")

    def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            assert messages(Opener(), [listener]) == [f"port {port} is in use"]

    replaced = f"/proc/{os.getpid()}/{'comm' if search == 'hangs' else 'stat'}"
    run_in_namespace(f"mount --bind {file} {replaced}", work)
    assert ("cannot find the process that holds an address" in caplog.text) is (search == "fails")
    if search == "hangs":
        os.close(os.open(file, os.O_WRONLY))  # which ends the search


def test_result_comes_from_another_thread_while_the_loop_runs() -> None:
    async def use() -> None:
        gate = threading.Event()
        work = asyncio.ensure_future(
            in_daemon_thread(lambda: (gate.wait(10), threading.current_thread().daemon))
        )
        for _ in range(10):
            await asyncio.sleep(0)
        assert not work.done()
        gate.set()
        assert await work == (True, True)

    asyncio.run(use())


def _exit() -> None:
    raise SystemExit(3)


def _stop() -> None:
    raise StopIteration


def _fail() -> None:
    raise LookupError("not here")


@pytest.mark.parametrize(
    ("work", "kind", "text"),
    [
        (_fail, LookupError, "not here"),
        (_exit, RuntimeError, "SystemExit"),
        (_stop, RuntimeError, "StopIter"),
    ],
)
def test_error_is_raised_where_it_is_awaited(
    work: Callable[[], None], kind: type[BaseException], text: str
) -> None:
    with pytest.raises(kind, match=text):
        asyncio.run(in_daemon_thread(work))


def test_operation_that_is_no_longer_awaited_is_undone() -> None:
    undone: list[str] = []
    gate = threading.Event()

    def work() -> str:
        gate.wait(10)
        return "made"

    async def give_up(then_leave: bool) -> None:
        task = asyncio.ensure_future(in_daemon_thread(work, undo=undone.append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not then_leave:
            gate.set()
            while not undone:
                await asyncio.sleep(0)

    asyncio.run(give_up(then_leave=False))
    assert undone == ["made"]
    gate.clear()
    asyncio.run(give_up(then_leave=True))
    gate.set()
    wait_until(lambda: undone == ["made", "made"])


def test_failure_without_a_waiter_is_dropped() -> None:
    async def give_up() -> None:
        task = asyncio.ensure_future(in_daemon_thread(_fail))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await in_daemon_thread(lambda: None)  # the failure has been handed over by now

    asyncio.run(give_up())
