"""The pool's own addresses: their listeners in the keeper, the process that serves them, and their problems."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import TLSConfig
from poolctl.errors import ServerError
from poolctl.keeper.store import Store
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.helper_process import Helpers
from poolctl.runners.listener_opener import Opener
from poolctl.supervisor.web_addresses import Order, SiteSettings, WebAddress, WebServer, tls_settings
from tests.certificates import certificate
from tests.manual_clock import ManualClock
from tests.unit.web.greeter import Greeter
from tests.unit.web.web_stage import Spawner

Ports = Callable[..., int]


class Hello(WebAddress[Any]):
    """Greets at an address; `wrong` is what the settings of the next table have wrong."""

    def __init__(self, web: WebServer, name: str = "greet") -> None:
        super().__init__(web, name, self._settings)
        self.word = "hello"
        self.wrong: Exception | None = None
        self.tls: dict[str, Any] | None = None
        self.noted: list[tuple[str, bool]] = []

    def _settings(self, table: Any) -> SiteSettings:
        if self.wrong is not None:
            raise self.wrong
        return SiteSettings({"word": self.word}, self.tls)

    def on_attempted(self, order: Order, *, changed: bool) -> None:
        super().on_attempted(order, changed=changed)
        self.noted.append((order.problem, changed))

    async def served(self, bind: str | None, mode: str = "") -> str:
        """Serve there; returns the problem when it has been tried."""
        self.serve_table(None if bind is None else SimpleNamespace(bind=bind, mode=mode))
        async with asyncio.timeout(60):
            return await self.wait_until_served()


class Supervisor:
    """One supervisor of a pool: its link to the keeper, the process, and an address."""

    def __init__(self, store: Store, tmp_path: Path, keeper: Spawner | None = None) -> None:
        self.keeper = keeper or Spawner(store, lambda table: Greeter)
        self.recorded: list[str] = []
        self.events = EventBus(ManualClock())
        self.events.subscribe(
            lambda event: self.recorded.append(f"{event.kind} {event.event}: {event.message}")
        )
        helpers = Helpers(self.keeper, str(tmp_path))
        environment: Any = SimpleNamespace(
            keeper=self.keeper, directory=str(tmp_path), helpers=helpers, opener=Opener()
        )
        self.web = WebServer(environment, self.events)
        self.hello = Hello(self.web)

    async def kill(self) -> None:
        """Leave everything as it is, as a supervisor that is killed does."""
        await until(lambda: self.web.process is not None)
        assert self.web.process is not None
        self.web.process.stop_watching()
        self.web.process.link.close()

    async def over(self) -> None:
        await self.hello.close()
        await self.web.aclose()
        for process in self.keeper.running:
            await asyncio.wait({process})
        self.keeper.end()


async def greeted(where: Any, tls: ssl.SSLContext | None = None) -> str:
    """The word that is answered at this address."""
    async with asyncio.timeout(60):
        if isinstance(where, str):
            reader, writer = await asyncio.open_unix_connection(where)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", where, ssl=tls)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        whole = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return whole.decode().rpartition("\r\n")[2].partition(" ")[0]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_address_is_served_moved_and_given_up(free_port: Ports, tmp_path: Path) -> None:
    one, other = free_port(), free_port()
    pool = Supervisor(Store(), tmp_path)
    hello = pool.hello
    assert await hello.served(f"127.0.0.1:{one}") == ""
    assert (await greeted(one), hello.noted) == ("hello", [("", True)])
    hello.word = "bye"
    assert await hello.served(f"127.0.0.1:{one}") == ""
    assert await greeted(one) == "bye"
    assert await hello.served(f"127.0.0.1:{one}") == ""
    assert hello.noted == [("", True)] * 2, "nothing is sent that is served already"
    assert await hello.served(f"127.0.0.1:{other}") == ""
    assert await greeted(other) == "bye"
    with pytest.raises(ConnectionRefusedError):
        await greeted(one)
    assert await hello.served(None) == ""
    with pytest.raises(ConnectionRefusedError):
        await greeted(other)
    assert (await pool.keeper.call({"op": "get", "name": "web listener greet"}))[1] == []
    (process,) = pool.keeper.running
    await asyncio.wait({process})
    await pool.over()


async def test_each_address_is_served_even_if_another_cannot_be_opened(
    free_port: Ports, tmp_path: Path
) -> None:
    port, taken = free_port(), free_port()
    pool = Supervisor(Store(), tmp_path)
    other = Hello(pool.web, "other")
    with socket.create_server(("127.0.0.1", taken)):
        assert "in use" in await pool.hello.served(f"127.0.0.1:{taken}")
        assert await other.served(f"127.0.0.1:{port}") == ""
        assert await greeted(port) == "hello"
    assert len(pool.keeper.processes) == 1
    await other.close()
    await pool.over()


async def test_start_waits_for_the_address_and_a_client_for_the_process(
    free_port: Ports, tmp_path: Path
) -> None:
    port = free_port()
    pool = Supervisor(Store(), tmp_path)
    await pool.hello.wait_for_opening_attempt()  # nothing is served: it does not wait
    pool.hello.serve_table(SimpleNamespace(bind=f"127.0.0.1:{port}"))
    await pool.hello.wait_for_opening_attempt()
    assert await greeted(port) == "hello"
    await pool.over()


async def test_attempt_at_an_earlier_address_says_nothing_about_the_current_one(
    free_port: Ports, tmp_path: Path
) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(Opener):
        async def listen(self, *arguments: Any, **more: Any) -> list[socket.socket]:
            if begun.is_set():
                return await super().listen(*arguments, **more)
            begun.set()
            await goes_on.wait()
            raise ServerError("not here")

    pool = Supervisor(Store(), tmp_path)
    pool.web.opener = Slow()
    pool.hello.serve_table(SimpleNamespace(bind=f"127.0.0.1:{free_port()}"))
    await begun.wait()
    pool.hello.serve_table(SimpleNamespace(bind=f"127.0.0.1:{free_port()}"))
    goes_on.set()
    await pool.hello.wait_for_opening_attempt()
    assert (pool.hello.problem, pool.hello.warnings) == ("", [])
    await pool.over()


async def test_next_supervisor_adopts_the_listener_and_the_process(free_port: Ports, tmp_path: Path) -> None:
    store, port = Store(), free_port()
    before = Supervisor(store, tmp_path)
    assert await before.hello.served(f"127.0.0.1:{port}") == ""
    await before.kill()
    after = Supervisor(store, tmp_path)
    after.web.opener = Occupied(1000)  # nothing else is opened
    unused = Hello(after.web, "unused")
    assert await unused.served(None) == ""
    await after.keeper.settle()
    assert await after.hello.served(f"127.0.0.1:{port}") == ""
    assert (after.hello.noted, after.keeper.processes) == ([("", False)], [])
    assert await greeted(port) == "hello"
    after.hello.word = "successor"
    assert await after.hello.served(f"127.0.0.1:{port}") == ""
    assert await greeted(port) == "successor"
    await unused.close()
    await after.over()
    await asyncio.wait(before.keeper.running)
    await before.hello.close()
    before.keeper.end()


async def test_process_of_another_version_serves_until_its_successor_does(
    free_port: Ports, tmp_path: Path
) -> None:
    store, port = Store(), free_port()
    pool = Supervisor(store, tmp_path)
    assert await pool.hello.served(f"127.0.0.1:{port}") == ""
    await until(lambda: pool.web.process is not None)
    first = pool.keeper.running[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"False 0")
    pool.web.process.mark = "0.0.1"
    pool.web.reconcile()
    answer = b""
    async with asyncio.timeout(60):
        while b"\r\nconnection: close\r\n" not in answer:  # a kept connection is told that it ends
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await reader.readuntil(b"False 0")
        assert await reader.read() == b""
    assert len(pool.keeper.processes) == 2
    assert await greeted(port) == "hello"
    await asyncio.wait({first})
    writer.close()
    await pool.over()


async def test_process_that_is_killed_is_replaced_and_clients_wait_for_the_next(
    free_port: Ports, tmp_path: Path
) -> None:
    port = free_port()
    pool = Supervisor(Store(), tmp_path)
    assert await pool.hello.served(f"127.0.0.1:{port}") == ""
    await until(lambda: pool.web.process is not None)
    pool.keeper.kill()
    await until(lambda: len(pool.keeper.processes) == 2)
    assert await greeted(port) == "hello"
    pool.events.flush()
    assert pool.recorded == ["pool web ended: the web server's process has ended; another one is started"]
    await pool.over()


async def test_process_that_cannot_be_started_is_a_problem_of_each_address(
    free_port: Ports, tmp_path: Path
) -> None:
    port = free_port()
    pool = Supervisor(Store(), tmp_path)
    pool.keeper.refuses = "no process can be created"
    assert await pool.hello.served(f"127.0.0.1:{port}") == "greet cannot be served: no process can be created"
    pool.keeper.refuses = ""
    assert await greeted(port) == "hello"
    await until(lambda: not pool.hello.problem)
    pool.events.flush()
    assert pool.recorded == ["pool web failed: no process can be created"]
    await pool.over()


async def test_process_that_answers_late_may_have_been_frozen(free_port: Ports, tmp_path: Path) -> None:
    pool = Supervisor(Store(), tmp_path)
    assert not await pool.web.is_answering()
    assert await pool.hello.served(f"127.0.0.1:{free_port()}") == ""
    await until(lambda: pool.web.process is not None)
    assert await pool.web.is_answering()
    asyncio.get_running_loop().call_soon(time.sleep, 1.1)  # the process shares this loop
    assert not await pool.web.is_answering()
    await pool.over()


async def test_refused_client_is_recorded(free_port: Ports, tmp_path: Path) -> None:
    pool = Supervisor(Store(), tmp_path)
    assert await pool.hello.served(f"127.0.0.1:{free_port()}") == ""
    pool.keeper.served["greet"].supervisor.report_refusal("greet", "1 greeting refused")
    await until(lambda: pool.events.flush() or pool.recorded)
    assert pool.recorded == ["audit greet client refused: 1 greeting refused"]
    await pool.over()


async def test_unix_socket_has_its_mode_and_is_removed_at_the_end(short_path: Path) -> None:
    path = short_path / "greet.sock"
    store = Store()
    pool = Supervisor(store, short_path)
    assert await pool.hello.served(f"unix:{path}", "0660") == ""
    assert (path.stat().st_mode & 0o777, await greeted(str(path))) == (0o660, "hello")
    assert await pool.hello.served(f"unix:{path}", "0600") == ""
    assert (path.stat().st_mode & 0o777, await greeted(str(path))) == (0o600, "hello")
    reply, fds = await pool.keeper.call({"op": "get", "name": "web listener greet"})
    assert reply["meta"] == f"0600 unix:{path}"
    os.close(fds[0])
    await pool.over()
    assert not path.exists()


async def test_mode_is_for_unix_sockets_only(free_port: Ports, tmp_path: Path) -> None:
    port = free_port()
    pool = Supervisor(Store(), tmp_path)
    assert await pool.hello.served(f"127.0.0.1:{port}", "0660") == ""
    assert await greeted(port) == "hello"
    await pool.over()


class Occupied(Opener):
    """An address that another program has for a number of attempts."""

    def __init__(self, attempts: int) -> None:
        super().__init__()
        self.left = attempts

    async def listen(self, *arguments: Any, **more: Any) -> list[socket.socket]:
        if self.left:
            self.left -= 1
            raise OSError("the address is in use")
        return await super().listen(*arguments, **more)


@pytest.mark.slow
async def test_address_in_use_is_one_problem_until_it_is_free(free_port: Ports, tmp_path: Path) -> None:
    port = free_port()
    pool = Supervisor(Store(), tmp_path)
    pool.web.opener = Occupied(2)
    pool.hello.serve_table(SimpleNamespace(bind=f"127.0.0.1:{port}"))
    await pool.hello.wait_for_opening_attempt()
    assert pool.hello.problem == "greet cannot be served: the address is in use"
    assert pool.hello.warnings == [f"[greet]: {pool.hello.problem}"]
    await until(lambda: not pool.hello.problem)
    assert await greeted(port) == "hello"
    pool.events.flush()
    assert pool.recorded == ["config greet not served: greet cannot be served: the address is in use"]
    await pool.over()


async def test_wrong_settings_are_a_problem_and_the_address_is_served_as_before(
    free_port: Ports, tmp_path: Path
) -> None:
    port = free_port()
    pool = Supervisor(Store(), tmp_path)
    hello = pool.hello
    hello.wrong = ServerError("it has no token", hint="look")
    assert await hello.served(f"127.0.0.1:{port}") == "greet cannot be served: it has no token"
    assert pool.keeper.processes == []
    hello.wrong = None
    assert await hello.served(f"127.0.0.1:{port}") == ""
    for wrong in (OSError("no space"), RuntimeError("can't start new thread")):
        hello.wrong = wrong
        assert await hello.served(f"127.0.0.1:{port}") == f"greet cannot be served: {wrong}"
        assert await greeted(port) == "hello"
    hello.wrong = None
    assert await hello.served(f"127.0.0.1:{port}") == ""
    hello.wrong = RuntimeError("again")
    assert await hello.served(f"127.0.0.1:{port}") != ""
    assert await hello.served(None) == ""
    await pool.over()


@pytest.mark.slow
async def test_bad_certificate_is_a_problem_and_the_one_before_stays_in_use(
    free_port: Ports, tmp_path: Path
) -> None:
    port = free_port()
    cert, key = certificate(tmp_path)
    good = key.read_bytes()
    pool = Supervisor(Store(), tmp_path)
    hello = pool.hello
    hello.tls = tls_settings(TLSConfig(cert=str(cert), key=str(tmp_path / "none.pem")), {})
    hello.serve_table(SimpleNamespace(bind=f"127.0.0.1:{port}"))
    await hello.wait_for_opening_attempt()
    assert hello.problem.startswith("greet cannot be served: its certificate cannot be used: ")
    hello.tls = tls_settings(TLSConfig(cert=str(cert), key=str(key)), {})
    assert await hello.served(f"127.0.0.1:{port}") == ""
    client = ssl.create_default_context(cafile=str(cert))
    assert await greeted(port, client) == "hello"
    key.write_text("broken")
    hello.tls = {**hello.tls, "min_version": "1.3"}
    hello.word = "bye"
    assert "its certificate cannot be used" in await hello.served(f"127.0.0.1:{port}")
    assert await greeted(port, client) == "hello"
    key.write_bytes(good)
    await until(lambda: not hello.problem)
    assert await greeted(port, client) == "bye"
    pool.events.flush()
    assert [event.partition(":")[0] for event in pool.recorded] == ["config greet not served"] * 2
    hello.tls = None
    assert await hello.served(f"127.0.0.1:{port}") == ""
    assert await greeted(port) == "bye"
    await pool.over()


def test_settings_of_a_certificate_have_the_password_of_its_variable() -> None:
    tls = TLSConfig(cert="/c", key="/k", password_env="KEY", client_auth="optional", ciphers="x")
    whole = {
        "cert": "/c", "key": "/k", "ca": None, "password": "open", "min_version": "1.2", "ciphers": "x",
        "client_auth": "optional",
    }  # fmt: skip
    assert tls_settings(tls, {"KEY": "open"}) == whole
    assert tls_settings(tls, {})["password"] == ""


@pytest.mark.parametrize(
    ("given", "is_optional", "client_auth"),
    [
        ({}, None, "none"),
        ({}, True, "none"),
        ({}, False, "none"),
        ({"ca": "/ca"}, None, "none"),
        ({"ca": "/ca"}, True, "optional"),
        ({"ca": "/ca"}, False, "required"),
        ({"ca": "/ca", "client_auth": "optional"}, False, "required"),
        ({"ca": "/ca", "client_auth": "required"}, True, "required"),
    ],
)
def test_clients_present_certificates_if_that_is_required(
    given: dict[str, Any], is_optional: bool | None, client_auth: str
) -> None:
    tls = TLSConfig(cert="/c", key="/k", **given)
    assert tls_settings(tls, {}, is_optional=is_optional)["client_auth"] == client_auth
