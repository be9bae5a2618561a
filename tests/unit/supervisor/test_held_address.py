"""An address that the supervisor serves: its listener in the keeper, its certificate, and its problems."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from poolctl.config import TLSConfig
from poolctl.errors import ServerError
from poolctl.http.http_server import ReceivedRequest, Responder, ServerLimits
from poolctl.http.messages import BadMessage
from poolctl.keeper.keeper import Store
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.listener_opener import Opener
from poolctl.supervisor.observers import held_address
from poolctl.supervisor.observers.held_address import HttpAddressServer, HttpEndpoint
from tests.certificates import certificate
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import run
from tests.unit.supervisor.test_state_store import StoreLink


class Greeter(HttpEndpoint):
    """Answers each request with a word."""

    def __init__(self) -> None:
        super().__init__(ServerLimits(), "greetings")
        self.word = ""

    async def handle(self, request: ReceivedRequest, response: Responder) -> None:
        await response.send(200, [("content-type", "text/plain")], self.word.encode())

    def error_response(self, error: BadMessage) -> tuple[int, str, bytes]:
        return 400, "text/plain", b""


class Greetings(HttpAddressServer[Greeter, Any]):
    """Greets at an address; `wrong` is what the settings of the next table have wrong."""

    def __init__(self, store: Store) -> None:
        self.link = StoreLink(store)
        self.recorded: list[str] = []
        events = EventBus(ManualClock())
        events.subscribe(lambda event: self.recorded.append(f"{event.kind} {event.event}: {event.message}"))
        self.variables: dict[str, str] = {}
        environment: Any = SimpleNamespace(
            keeper=self.link, configuration=SimpleNamespace(environment=self.variables)
        )
        super().__init__(environment, events, "greetings", "greet")
        self.events = events
        self.word = "hello"
        self.made = 0
        self.wrong: Exception | None = None
        self.tls: TLSConfig | Literal[False] = False
        self.required = True

    def make_server(self) -> Greeter:
        self.made += 1
        return Greeter()

    async def set_up_server(self, server: Greeter, table: Any, env: Mapping[str, str]) -> None:
        if self.wrong is not None:
            raise self.wrong
        server.word = self.word
        await self.use_certificate(server, self.tls, env, mtls_required=self.required)

    async def served(self, bind: str | None, mode: str = "") -> None:
        """Serve there; returns when it has been tried."""
        self.serve_table(None if bind is None else SimpleNamespace(bind=bind, mode=mode))
        await self.wait_for_opening_attempt()

    async def over(self) -> None:
        await self.close()
        self.link.end()


async def greeted(where: Any, tls: ssl.SSLContext | None = None) -> str:
    """The word that the server at this address answers with."""
    if isinstance(where, str):
        reader, writer = await asyncio.open_unix_connection(where)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", where, ssl=tls)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    whole = await reader.read()
    writer.close()
    return whole.decode().rpartition("\r\n")[2]


def test_address_is_served_moved_and_given_up(free_port: Callable[..., int]) -> None:
    async def work() -> None:
        one, other = free_port(), free_port()
        greetings = Greetings(Store())
        await greetings.served(f"127.0.0.1:{one}")
        assert (await greeted(one), greetings.problem, greetings.made) == ("hello", "", 1)
        greetings.word = "good evening"
        await greetings.served(f"127.0.0.1:{one}")
        assert (await greeted(one), greetings.made) == ("good evening", 1), "it is the same server"
        await greetings.served(f"127.0.0.1:{other}")
        assert (await greeted(other), greetings.made) == ("good evening", 2)
        with pytest.raises(ConnectionRefusedError):
            await greeted(one)
        await greetings.served(None)
        with pytest.raises(ConnectionRefusedError):
            await greeted(other)
        assert (await greetings.link.call({"op": "get", "name": "greetings"}))[1] == []
        await greetings.over()

    run(work())


def test_attempt_at_an_earlier_address_says_nothing_about_the_current_one(
    free_port: Callable[..., int],
) -> None:
    async def work() -> None:
        begun, goes_on = asyncio.Event(), asyncio.Event()

        class Slow(Greetings):
            async def set_up_server(self, server: Greeter, table: Any, env: Mapping[str, str]) -> None:
                if begun.is_set():
                    await asyncio.sleep(0.01)
                    return
                begun.set()
                await goes_on.wait()
                raise ServerError("not here")

        greetings = Slow(Store())
        greetings.serve_table(SimpleNamespace(bind=f"127.0.0.1:{free_port()}"))
        await begun.wait()
        greetings.serve_table(SimpleNamespace(bind=f"127.0.0.1:{free_port()}"))
        goes_on.set()
        await greetings.wait_for_opening_attempt()
        assert greetings.problem == ""
        await greetings.over()

    run(work())


def test_next_supervisor_serves_the_listener_that_the_keeper_holds(free_port: Callable[..., int]) -> None:
    async def work() -> None:
        store, port = Store(), free_port()
        before, after = Greetings(store), Greetings(store)
        await before.served(f"127.0.0.1:{port}")
        reply, fds = await before.link.call({"op": "get", "name": "greetings"})
        assert (reply["meta"], len(fds)) == (f"127.0.0.1:{port}", 1)
        os.close(fds[0])
        after.word = "successor"
        after._opener = Occupied(1000)  # nothing else is opened
        await after.served(f"127.0.0.1:{port}")
        assert after.problem == ""
        before._server.http.abort()  # type: ignore[union-attr]
        assert await greeted(port) == "successor"
        for each in (before, after):
            await each.over()

    run(work())


def test_unix_socket_has_its_mode_and_is_removed_at_the_end(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "greet.sock"
        store = Store()
        greetings = Greetings(store)
        await greetings.served(f"unix:{path}", "0660")
        assert (path.stat().st_mode & 0o777, await greeted(str(path))) == (0o660, "hello")
        await greetings.served(f"unix:{path}", "0600")
        assert (path.stat().st_mode & 0o777, greetings.made) == (0o600, 2)
        reply, fds = await greetings.link.call({"op": "get", "name": "greetings"})
        assert reply["meta"] == f"0600 unix:{path}"
        os.close(fds[0])
        after = Greetings(store)
        await after.served(f"unix:{path}", "0600")
        assert (await greeted(str(path)), after.problem) == ("hello", "")
        await after.served(None)
        assert not path.exists()
        for each in (greetings, after):
            await each.over()

    run(work())


def test_mode_is_for_unix_sockets_only(free_port: Callable[..., int]) -> None:
    async def work() -> None:
        port = free_port()
        greetings = Greetings(Store())
        await greetings.served(f"127.0.0.1:{port}", "0660")
        assert (greetings._open, await greeted(port)) == (f"127.0.0.1:{port}", "hello")
        await greetings.over()

    run(work())


class Occupied(Opener):
    """An address that another program has for a number of attempts."""

    def __init__(self, attempts: int) -> None:
        super().__init__()
        self.left = attempts

    async def listen(self, *given: Any, **more: Any) -> list[socket.socket]:
        if self.left:
            self.left -= 1
            raise OSError("the address is in use")
        return await super().listen(*given, **more)


def test_address_in_use_is_one_problem_until_it_is_free(
    free_port: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_address, "_RETRY_SECONDS", 0.001)

    async def work() -> None:
        port = free_port()
        greetings = Greetings(Store())
        greetings._opener = Occupied(3)
        await greetings.served(f"127.0.0.1:{port}")
        assert greetings.problem == "greet cannot be served: the address is in use"
        await until(lambda: not greetings.problem)
        assert await greeted(port) == "hello"
        greetings.events.flush()
        assert greetings.recorded == [
            "config greet not served: greet cannot be served: the address is in use"
        ]
        await greetings.over()

    run(work())


def test_wrong_settings_are_a_problem_and_the_server_stays_as_it_was(free_port: Callable[..., int]) -> None:
    async def work() -> None:
        port = free_port()
        greetings = Greetings(Store())
        greetings.wrong = ServerError("its certificate cannot be used", hint="look")
        await greetings.served(f"127.0.0.1:{port}")
        assert greetings.problem == "greet cannot be served: its certificate cannot be used"
        assert greetings._server is None
        greetings.wrong = None
        await greetings.served(f"127.0.0.1:{port}")
        assert (greetings.problem, await greeted(port)) == ("", "hello")
        greetings.wrong = OSError("no space")
        await greetings.served(f"127.0.0.1:{port}")
        assert greetings.problem == "greet cannot be served: no space"
        assert await greeted(port) == "hello"
        greetings.wrong = RuntimeError("can't start new thread")
        await greetings.served(f"127.0.0.1:{port}")
        assert greetings.problem == "greet cannot be served: can't start new thread"
        greetings.wrong = None
        await greetings.served(f"127.0.0.1:{port}")
        assert greetings.problem == ""
        await greetings.over()

    run(work())


def client_of(cert: Path, *, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(cert))
    if own is not None:
        context.load_cert_chain(*own)
    return context


def test_certificate_is_used_renewed_and_left_out_again(
    free_port: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_address, "_RENEWAL_SECONDS", 0.01)

    async def work() -> None:
        port = free_port()
        cert, key = certificate(tmp_path)
        greetings = Greetings(Store())
        greetings.tls = TLSConfig(cert=str(cert), key=str(key))
        await greetings.served(f"127.0.0.1:{port}")
        assert greetings.problem == ""
        assert await greeted(port, client_of(cert)) == "hello"
        server = greetings._server
        assert server is not None
        context = server.http.tls
        await greetings.served(f"127.0.0.1:{port}")
        assert server.http.tls is context, "the files are as they were"
        certificate(tmp_path)  # renewed by another program
        await until(lambda: server.http.tls is not context)
        assert await greeted(port, client_of(cert)) == "hello"
        greetings.tls = False
        await greetings.served(f"127.0.0.1:{port}")
        assert (server.http.tls, await greeted(port)) == (None, "hello")
        await greetings.over()

    run(work())


@pytest.mark.parametrize(
    ("required", "client_auth", "mode"),
    [
        (True, "none", ssl.CERT_REQUIRED),
        (False, "none", ssl.CERT_OPTIONAL),
        (False, "optional", ssl.CERT_OPTIONAL),
        (False, "required", ssl.CERT_REQUIRED),
    ],
)
def test_clients_present_certificates_if_that_is_required(
    tmp_path: Path, required: bool, client_auth: str, mode: ssl.VerifyMode
) -> None:
    async def work() -> None:
        cert, key = certificate(tmp_path)
        greetings = Greetings(Store())
        greetings.tls = TLSConfig(
            cert=str(cert), key=str(key), ca=str(cert), client_auth=client_auth, min_version="1.3",
            ciphers="ECDHE-ECDSA-AES128-GCM-SHA256",
        )  # fmt: skip
        greetings.required = required
        server = Greeter()
        await greetings.set_up_server(server, None, greetings.variables)
        assert server.http.tls is not None
        assert (server.http.tls.verify_mode, server.http.tls.minimum_version) == (
            mode,
            ssl.TLSVersion.TLSv1_3,
        )
        names = {each["name"] for each in server.http.tls.get_ciphers()}
        assert "ECDHE-ECDSA-AES128-GCM-SHA256" in names
        assert "ECDHE-ECDSA-AES256-GCM-SHA384" not in names
        without = Greeter()
        greetings.tls = TLSConfig(cert=str(cert), key=str(key))
        await greetings.set_up_server(without, None, greetings.variables)
        assert without.http.tls is not None
        assert (without.http.tls.verify_mode, without.http.tls.minimum_version) == (
            ssl.CERT_NONE,
            ssl.TLSVersion.TLSv1_2,
        )
        greetings.link.end()

    run(work())


def test_certificate_that_cannot_be_used_names_its_table(tmp_path: Path) -> None:
    async def work() -> None:
        greetings = Greetings(Store())
        greetings.tls = TLSConfig(cert=str(tmp_path / "gone.pem"))
        with pytest.raises(ServerError) as caught:
            await greetings.set_up_server(Greeter(), None, greetings.variables)
        assert caught.value.message.startswith("its certificate cannot be used: ")
        assert caught.value.hint == "check tls of [greet]"
        greetings.link.end()

    run(work())


def test_key_is_decrypted_with_the_password_of_its_variable(tmp_path: Path) -> None:
    async def work() -> None:
        from cryptography.hazmat.primitives import serialization

        cert, key = certificate(tmp_path)
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"open sesame")
        key.write_bytes(
            loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
        )
        greetings = Greetings(Store())
        greetings.tls = TLSConfig(cert=str(cert), key=str(key), password_env="KEY")
        for variables in ({}, {"KEY": "wrong"}):
            greetings.variables.update(variables)
            with pytest.raises(ServerError):
                await greetings.set_up_server(Greeter(), None, greetings.variables)
        greetings.variables["KEY"] = "open sesame"
        server = Greeter()
        await greetings.set_up_server(server, None, greetings.variables)
        assert server.http.tls is not None
        greetings.link.end()

    run(work())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class TableGreetings(Greetings):
    """Greets as a table of the file says, with a variable of the environment."""

    async def set_up_server(self, server: Greeter, table: Any, env: Mapping[str, str]) -> None:
        server.word = f"{table.word} {env['NAME']}"

    async def followed(self, table: Any) -> None:
        """Follow the table; returns when its address has been tried."""
        self.serve_table(table)
        await self.wait_for_opening_attempt()


def test_address_of_a_table_follows_it_and_the_newest_environment(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "greet.sock"
        greetings = TableGreetings(Store())
        greetings.variables["NAME"] = "Ada"
        table = SimpleNamespace(bind=f"unix:{path}", mode="0660", word="hello")
        await greetings.followed(table)
        assert (await greeted(str(path)), path.stat().st_mode & 0o777) == ("hello Ada", 0o660)
        greetings.variables["NAME"] = "Grace"
        await greetings.followed(SimpleNamespace(bind=f"unix:{path}", mode="0660", word="good evening"))
        assert (await greeted(str(path)), greetings.problem) == ("good evening Grace", "")
        await greetings.followed(None)
        assert not path.exists()
        await greetings.over()

    run(work())
