"""What systemd is notified of: readiness, a line of status, reloads, the end, the watchdog."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from poolctl import ServerConfig, ServerError
from poolctl.control.control_server import Request
from poolctl.supervisor.systemd import SystemdNotifier
from tests.notify_socket import NotifySocket
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER
from tests.unit.supervisor.desk import Desk
from tests.virtual_loop import VirtualLoop, run_in_virtual_time

pytestmark = pytest.mark.loop(run=run_in_virtual_time)


@pytest.fixture
def notified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotifySocket]:
    notify_socket = NotifySocket(tmp_path_factory.mktemp("n"))
    yield notify_socket
    notify_socket.close()


class Served:
    """A notifier over a desk, which notifies this socket."""

    def __init__(self, notified: NotifySocket, desk: Desk, **env: str) -> None:
        self.notified = notified
        self.desk = desk
        self.opened = asyncio.Event()
        self.opened.set()
        self.notifier = SystemdNotifier(
            {"NOTIFY_SOCKET": notified.path, **env}, desk.core, lambda: self.opened.wait()
        )

    async def lines(self) -> list[str]:
        """The lines since the last call, after what is to be sent soon."""
        await asyncio.sleep(1)
        lines = self.notified.lines
        self.notified.forget()
        return lines


async def test_pool_is_ready_when_each_server_that_should_run_is(notified: NotifySocket) -> None:
    desk = Desk(web("a"), web("b"), web("off", disabled=True), b=NEVER)
    served = Served(notified, desk)
    assert await served.lines() == ["STATUS=0 servers ready"], "none was asked to run"
    starting = desk.begin("start")
    async with asyncio.timeout(20):
        while desk.states()["a"] != "running":
            await asyncio.sleep(0.005)
    assert (await served.lines())[-1] == "STATUS=1 of 2 servers ready; b is starting"
    desk.core.entries["b"].observed.failure = ServerError("no port")
    desk.core.touch(desk.core.entries["b"])
    await turns()
    assert await served.lines() == ["STATUS=1 of 2 servers ready; b is starting: no port"]
    await desk.ask("stop", "b")
    assert await served.lines() == ["STATUS=1 server ready", "READY=1"]
    await desk.ask("restart", "a")
    assert [line for line in await served.lines() if line == "READY=1"] == []
    starting.cancel()


async def test_pool_is_ready_only_once_its_own_addresses_serve(notified: NotifySocket) -> None:
    desk = Desk(web("a"))
    served = Served(notified, desk)
    served.opened.clear()
    await desk.ask("start")
    assert (await served.lines())[-1] == "STATUS=1 server ready"
    served.opened.set()
    assert await served.lines() == ["READY=1"]


async def test_server_that_starts_on_demand_is_not_waited_for(notified: NotifySocket) -> None:
    desk = Desk(web("a"), web("tool", on_demand=True))
    served = Served(notified, desk)
    assert await served.lines() == ["STATUS=0 servers ready"]
    await desk.ask("start")
    assert (await served.lines())[-2:] == ["STATUS=1 server ready", "READY=1"]
    await desk.ask("start", "tool")
    assert (await served.lines())[-1] == "STATUS=2 servers ready"


async def test_failed_servers_are_counted_and_the_first_is_named(notified: NotifySocket) -> None:
    desk = Desk(web("a"), web("b"), web("c"), a=FAILS, b=FAILS)
    served = Served(notified, desk)
    await desk.ask("start")
    assert (await served.lines())[-1] == (
        "STATUS=1 of 3 servers ready; a is failed: exited with status 3 before it was ready, and 1 more"
    )


async def test_sleeping_servers_and_pools_without_servers_are_ready(notified: NotifySocket) -> None:
    assert await Served(notified, Desk()).lines() == ["STATUS=0 servers ready", "READY=1"]
    desk = Desk(web("a", scale={"min": 0}), web("b"))
    served = Served(notified, desk)
    await served.lines()
    await desk.ask("start")
    assert desk.states()["a"] == "sleeping"
    assert (await served.lines())[-2:] == ["STATUS=2 servers ready", "READY=1"]


Handle = Callable[[Request, Any], Awaitable[object]]


async def test_reload_is_announced_once_the_pool_is_ready(notified: NotifySocket) -> None:
    desk = Desk(web("a"))
    served = Served(notified, desk)
    may_end = asyncio.Event()

    async def handle(request: Request, progress: Any) -> object:
        await may_end.wait()
        return request.verb

    around = served.notifier.wrap(handle)

    def ask(verb: str, **options: Any) -> asyncio.Task[object]:
        return asyncio.ensure_future(around(Request(verb, {"options": options}, 1, 0), lambda line: None))

    await served.lines()
    early = ask("reload")
    await turns()
    await desk.ask("start")
    assert (await served.lines())[-2:] == ["STATUS=1 server ready", "READY=1"]
    may_end.set()
    assert await early == "reload"
    may_end.clear()
    await served.lines()
    reloads = [ask("reload"), ask("reload"), ask("reload", dry_run=True), ask("list")]
    await turns()
    lines = await served.lines()
    assert (lines[0], lines[1].partition("=")[0], len(lines)) == ("RELOADING=1", "MONOTONIC_USEC", 2)
    may_end.set()
    await asyncio.gather(*reloads)
    assert await served.lines() == ["READY=1"], "of two at once only the last ends it"


async def test_end_is_announced_once_and_nothing_follows_it(notified: NotifySocket) -> None:
    desk = Desk(web("a"))
    served = Served(notified, desk)
    served.notifier.notify_stopping()
    served.notifier.notify_stopping()
    await desk.ask("start")
    assert await served.lines() == ["STOPPING=1", "STATUS=stopping"]

    async def handle(request: Request, progress: Any) -> object:
        return None

    await served.notifier.wrap(handle)(Request("reload", {}, 1, 0), lambda line: None)
    assert await served.lines() == []


async def test_reload_during_the_end_of_a_ready_pool_is_not_announced(notified: NotifySocket) -> None:
    desk = Desk(web("a"))
    served = Served(notified, desk)
    await desk.ask("start")
    assert "READY=1" in await served.lines()
    served.notifier.notify_stopping()
    await served.lines()

    async def handle(request: Request, progress: Any) -> object:
        return request.verb

    answer = await served.notifier.wrap(handle)(Request("reload", {}, 1, 0), lambda line: None)
    assert (answer, await served.lines()) == ("reload", [])


def test_watchdog_is_fed_twice_in_its_interval(notified: NotifySocket) -> None:
    async def begin() -> None:
        Served(notified, Desk(web("a")), WATCHDOG_USEC="60000000")

    loop = VirtualLoop()
    loop.run_until_complete(begin())
    loop.pass_time(95)
    assert notified.lines.count("WATCHDOG=1") == 4
    loop.close()


async def test_servers_that_were_stopped_are_not_awaited(notified: NotifySocket) -> None:
    desk = Desk(web("a"), web("b"), ServerConfig(name="q", command=["x"]))
    served = Served(notified, desk)
    await desk.ask("start")
    await served.lines()
    await desk.ask("stop", "a", "q")
    assert await served.lines() == ["STATUS=1 server ready"]
    await desk.ask("disable", "b")
    assert await served.lines() == ["STATUS=0 servers ready"]
