"""The process: its orders, its sites, its end, and renewed certificates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.control_server import ControlServer, Progress, Request
from poolctl.control.server_answers import MetricsResult
from poolctl.keeper import wire
from poolctl.runners.process_link import Link, LinkHandler
from poolctl.supervisor.launch import listen
from poolctl.web.web_process import Certificate, WebServerProcess
from tests.certificates import certificate
from tests.unit.web.greeter import any_certificate, tls_of
from tests.virtual_loop import VirtualLoop


class Orders(LinkHandler):
    """The supervisor's end of the link to a process in this one; `answers` are its messages."""

    def __init__(self) -> None:
        ours, theirs = wire.pair()
        self.answers: list[Any] = []
        self.process = WebServerProcess(theirs.detach())
        self.running = asyncio.ensure_future(self.process.serve_supervisor())
        self.link = Link(ours, self)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        self.answers.append(message)

    async def until(self, *answers: dict[str, Any]) -> None:
        """Wait for exactly these further messages."""
        while len(self.answers) < len(answers):
            await asyncio.sleep(0.01)
        assert self.answers == [*answers]
        self.answers.clear()

    async def serve(self, listener: socket.socket, number: int = 1, path: str = "/a", **more: Any) -> None:
        order = {"t": "serve", "table": "metrics", "number": number, "settings": {"path": path}, "tls": None}
        self.link.send({**order, **more}, [listener])


def play(work: Callable[[Orders], Awaitable[None]], directory: Path) -> None:
    async def whole() -> None:
        orders = Orders()
        orders.link.send({"t": "begin", "directory": str(directory)})
        await orders.until({"t": "up"})
        await work(orders)
        await orders.running
        orders.link.close()

    handlers = [*logging.getLogger().handlers]
    try:
        with contextlib.closing(VirtualLoop()) as loop:
            loop.run_until_complete(whole())
    finally:
        for handler in {*logging.getLogger().handlers} - {*handlers}:
            logging.getLogger().removeHandler(handler)
            handler.close()


def served(number: int = 1, problem: str = "", *, changed: bool = True) -> dict[str, Any]:
    return {"t": "served", "table": "metrics", "number": number, "problem": problem, "changed": changed}


async def answered(port: int, path: str = "/") -> str:
    """What a client gets: on the wrong path, where the metrics are."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    whole = await reader.read()
    writer.close()
    return whole.decode().rpartition("\r\n")[2]


async def metrics(request: Request, progress: Progress) -> MetricsResult:
    return MetricsResult(text="figures")


def test_process_serves_from_its_order_to_its_end(tmp_path: Path) -> None:
    async def work(orders: Orders) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            orders.link.send({"t": "unknown"})
            await orders.serve(listener)
            await orders.until(served())
            await orders.serve(listener, 2)
            await orders.until(served(2, changed=False))
            await orders.serve(listener, 3, "/b")
            await orders.until(served(3))
            assert await answered(port) == "the metrics are at /b\n"
        waiting = asyncio.ensure_future(answered(port, "/b"))
        await asyncio.sleep(1)
        orders.link.send({"t": "end"})
        await asyncio.sleep(0.5)
        supervisor = ControlServer(metrics)
        supervisor.replace_listener(listen(str(tmp_path / "control.sock")))
        assert await waiting == "figures", "requests are answered before the process ends"
        await supervisor.close()
        await orders.running
        with pytest.raises(ConnectionRefusedError):
            await answered(port)

    play(work, tmp_path)


def test_listener_of_a_closed_table_is_closed_when_that_is_confirmed(tmp_path: Path) -> None:
    async def work(orders: Orders) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            await orders.serve(listener)
        await orders.until(served())
        orders.link.send({"t": "close", "table": "metrics"})
        orders.link.send({"t": "close", "table": "other"})
        await orders.link.call({"t": "performed"})
        with pytest.raises(ConnectionRefusedError):
            await answered(port)
        orders.link.send({"t": "end"})

    play(work, tmp_path)


def test_site_moves_to_another_listener(tmp_path: Path) -> None:
    async def work(orders: Orders) -> None:
        for number in (1, 2):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
                await orders.serve(listener, number)
            await orders.until(served(number))
            assert await answered(port) == "the metrics are at /a\n"
        orders.link.send({"t": "end"})

    play(work, tmp_path)


def test_site_that_fails_is_reported(tmp_path: Path) -> None:
    async def work(orders: Orders) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            await orders.serve(listener, settings={})
        await orders.until(served(1, "'path'"))
        orders.link.send({"t": "end"})

    play(work, tmp_path)


def test_process_ends_when_keeper_and_supervisor_have_ended(tmp_path: Path) -> None:
    async def work(orders: Orders) -> None:
        orders.link.close()

    play(work, tmp_path)


def test_renewed_certificate_is_used_and_reported_while_it_is_broken(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()

    async def work(orders: Orders) -> None:
        cert, key = certificate(tmp_path)
        new_cert, new_key = certificate(tmp_path / "new")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            await orders.serve(listener, tls=tls_of(cert, key))
        await orders.until(served())
        first = await shown(port)
        new_cert.replace(cert)  # for a moment it does not fit the key
        while not orders.answers:
            await asyncio.sleep(0.1)
        assert orders.answers.pop()["problem"].startswith("its certificate cannot be used: ")
        assert await shown(port) == first
        new_key.replace(key)
        await orders.until(served())
        assert await shown(port) != first
        orders.link.send({"t": "end"})

    play(work, tmp_path)


async def shown(port: int) -> bytes | None:
    """The certificate that a client sees."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=any_certificate())
    found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return found


async def test_certificate_is_loaded_again_only_if_its_files_have_changed(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    found = Certificate(tls_of(cert, key, ca=str(cert), client_auth="required"))
    await found.load_if_changed()
    context = found.context
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    await found.load_if_changed()
    assert found.context is context
    os.utime(cert)
    await found.load_if_changed()
    assert found.context is not context
    without = Certificate(None)
    await without.load_if_changed()
    assert (without.context, without.problem) == (None, "")


def test_certificate_in_one_file_with_a_locked_key_needs_its_password(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    async def work() -> None:
        cert, key = certificate(tmp_path)
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"open sesame")
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked
        cert.write_bytes(cert.read_bytes() + loaded.private_bytes(*form))
        for password, usable in (("", False), ("wrong", False), ("open sesame", True)):
            found = Certificate({**tls_of(cert, key), "key": None, "password": password})
            await found.load_if_changed()
            assert (found.context is not None, found.problem == "") == (usable, usable)

    asyncio.run(work())
