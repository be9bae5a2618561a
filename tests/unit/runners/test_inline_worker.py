"""A worker in this process: it begins in its turn, serves, drains, stops, and can be cancelled."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from poolctl import ServerConfig, TLSConfig
from poolctl.errors import ServerError
from poolctl.runners.inline_worker import InlineWorker
from poolctl.runners.runner_protocol import Exit, Placement
from tests import serving
from tests.asgi_apps import hanging, hello, refusing
from tests.certificates import certificate
from tests.serving import Client, turns, until
from tests.virtual_loop import run_in_virtual_time


class Stage:
    """A worker on a listener of its own, that may begin at once."""

    def __init__(
        self, app: Any = hello, *, state: Any = None, turn: asyncio.Semaphore | None = None, **keys: Any
    ) -> None:
        self.listener = serving.listener()
        self.port = self.listener.getsockname()[1]
        self.turn = turn or asyncio.Semaphore(1)
        config = ServerConfig(name="web", bind=f"127.0.0.1:{self.port}", app=app, **keys)
        placement = Placement.of("web", 1, 0, pid=1)
        self.worker = InlineWorker(placement, config, state or {}, self.turn, lambda: None)

    async def started(self) -> Client:
        """A connection to the worker once it is ready."""
        self.worker.start([self.listener])
        await asyncio.wait(
            {self.worker.answered, self.worker.exited}, timeout=30, return_when=asyncio.FIRST_COMPLETED
        )
        assert not self.worker.exited.done(), self.worker.reason
        return await Client.connect(self.port)

    async def failed(self) -> tuple[Exit, str]:
        """How a worker ends that does not start, and why."""
        self.worker.start([self.listener])
        exit_ = await self.ended()
        assert not self.worker.answered.done()
        return exit_, self.worker.reason

    async def ended(self) -> Exit:
        return await asyncio.wait_for(self.worker.exited, 30)

    async def close(self) -> None:
        if not self.worker.exited.done():
            await self.worker.kill(Exit())
        self.listener.close()


pytestmark = pytest.mark.loop(run=serving.PLAIN.run)


async def text(client: Client, path: str = "/") -> str:
    return (await client.get(path))[2].decode()


async def reset_or_closed(client: Client) -> bool:
    """Whether the server ends the connection without a response."""
    try:
        return await client.at_end()
    except ConnectionError:
        return True


async def test_worker_waits_for_its_turn_and_gives_it_back_when_it_has_imported() -> None:
    stage = Stage("tests.asgi_apps:hello", app_dir=".")
    await stage.turn.acquire()
    stage.worker.start([stage.listener])
    await turns()
    assert not stage.worker.begun.done()
    stage.turn.release()
    await asyncio.wait_for(stage.worker.answered, 30)
    assert stage.worker.begun.done()
    assert not stage.turn.locked()
    await stage.close()


async def test_drained_worker_answers_once_more_on_each_connection_and_a_stopped_one_does_not() -> None:
    for drain, expected in ((True, "hello"), (False, "")):
        stage = Stage(drain_timeout=60)
        client = await stage.started()
        await client.get()
        stage.worker.begin_shutdown(drain=drain)
        await turns()
        await client.send()
        data = await client.reader.read()
        assert data.decode().endswith(expected)
        assert bool(data) == drain
        assert (await stage.ended()).ok
        await stage.close()


async def test_worker_that_is_stopped_while_it_loads_or_starts_has_not_started() -> None:
    waiting = Stage()
    await waiting.turn.acquire()
    waiting.worker.start([waiting.listener])
    await turns()
    waiting.worker.begin_shutdown(drain=False)
    assert await waiting.ended() == Exit(message="stopped while it was loading")
    starting = Stage(hanging)
    starting.worker.start([starting.listener])
    await turns()
    starting.worker.begin_shutdown(drain=False)
    assert (await starting.ended()).status == 3
    assert not starting.worker.answered.done()
    for stage in (waiting, starting):
        await stage.close()


async def test_reason_of_an_application_that_does_not_start_is_its_own() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "Traceback:\n  x\nKeyError: 'db'\n"})

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    def broken() -> Any:
        raise LookupError("no such thing")

    for app, keys, status, reason in (
        (refusing, {}, 3, "no database"),
        (failing, {}, 3, "KeyError: 'db'"),
        (silent, {}, 3, "the application refused to start"),
        ("tests.asgi_apps:gone", {"app_dir": "."}, 3, "has no attribute 'gone'"),
        (broken, {"factory": True}, 3, "no such thing"),
        (hello, {"tls": {"cert": "/gone/cert", "key": "/gone/key"}}, 1, "cannot read /gone/cert"),
    ):
        stage = Stage(app, **keys)
        exit_, found = await stage.failed()
        assert (exit_, reason in found) == (Exit.from_returncode(status), True), found
        await stage.close()


async def test_error_of_an_unusable_application_is_the_reason() -> None:
    class Unusable:
        @property
        def __call__(self) -> Any:
            raise ValueError("unusable")

    stage = Stage(Unusable())
    assert await stage.failed() == (Exit.from_returncode(1), "ValueError: unusable")
    await stage.close()


async def test_application_is_looked_for_in_its_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app_of_a_directory.py").write_text("from tests.asgi_apps import hello as app\n")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    before = list(sys.path)
    for _ in range(2):
        stage = Stage("app_of_a_directory:app", app_dir=str(tmp_path))
        assert await text(await stage.started()) == "hello"
        await stage.close()
    assert sys.path == [str(tmp_path), *before]
    del sys.modules["app_of_a_directory"]


async def test_access_log_and_request_ids_are_a_servers_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def requests(**http: Any) -> dict[str, str]:
        stage = Stage(http=http)
        client = await stage.started()
        _, headers, _ = await client.get("/x")
        stage.worker.begin_shutdown(drain=False)
        await stage.ended()
        await stage.close()
        return headers

    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "handlers", [caplog.handler])
    with caplog.at_level(logging.INFO, logger="uvicorn.access"):
        assert "x-request-id" not in await requests()
        assert caplog.messages == []
        assert "x-request-id" in await requests(request_id=True)
        assert caplog.messages == []
        assert "x-request-id" not in await requests(access_log=True)
        assert any("/x" in message for message in caplog.messages)


async def test_worker_that_does_not_accept_serves_its_connections_and_accepts_when_it_is_to() -> None:
    stage = Stage()
    stage.worker.set_accepting(False)
    client = await stage.started()
    assert await text(client) == "hello"
    stage.worker.set_accepting(False)
    await turns()
    waiting = await Client.connect(stage.port)
    await waiting.send()
    await turns()
    assert await text(client) == "hello"
    assert await waiting.stays_open(0.01)
    stage.worker.set_accepting(True)
    assert (await waiting.answer())[2] == b"hello"
    await stage.close()


async def test_gated_worker_answers_probes_before_it_accepts() -> None:
    stage = Stage(health={"readiness": {"http": "/"}})
    with pytest.raises(ConnectionRefusedError, match="has not started"):
        stage.worker.connect("http", True)
    client = await stage.started()
    await client.send()
    await turns()
    probe = Client(*await asyncio.open_connection(sock=stage.worker.connect("http", True)))
    assert await text(probe) == "hello"
    assert await client.stays_open(0.01)
    stage.worker.set_accepting(True)
    assert (await client.answer())[2] == b"hello"
    await stage.close()


async def test_probe_of_a_server_with_tls_is_in_plain_text_only_if_it_is_asked_for(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(cert))

    stage = Stage(tls={"cert": str(cert), "key": str(key)})
    await stage.started()
    plain = Client(*await asyncio.open_connection(sock=stage.worker.connect("http", True)))
    assert await text(plain) == "hello"
    ours = stage.worker.connect("http", False)
    secure = Client(*await asyncio.open_connection(sock=ours, ssl=context, server_hostname="localhost"))
    assert await text(secure) == "hello"
    await stage.close()


async def test_renewed_certificate_is_used_by_new_handshakes_and_an_unusable_one_is_refused(
    tmp_path: Path,
) -> None:
    cert, key = certificate(tmp_path)

    async def shown(port: int) -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

    stage = Stage(tls={"cert": str(cert), "key": str(key)})
    worker, server = stage.worker, stage.worker.server
    worker.reload_tls(server)  # nothing to renew yet
    await stage.started()
    new_cert, new_key = certificate(tmp_path, "new")
    renewed = server.model_copy(update={"tls": TLSConfig(cert=str(new_cert), key=str(new_key))})
    worker.reload_tls(renewed)
    assert await shown(stage.port) == new_cert.read_text()
    with pytest.raises(ServerError, match="its certificates cannot be used") as caught:
        worker.reload_tls(server.model_copy(update={"tls": TLSConfig(cert=str(cert), key=str(new_key))}))
    assert (caught.value.name, caught.value.bind) == ("web", server.bind)
    assert await shown(stage.port) == new_cert.read_text()
    worker.reload_tls(server.model_copy(update={"tls": False}))
    await stage.close()


async def test_killed_worker_ends_as_ordered_with_its_requests_connections_and_lifespan() -> None:
    begun: list[str] = []
    cancelled: list[str] = []

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["type"])
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(scope["type"])
            raise

    stage = Stage(stuck, stop_timeout=600)
    client = await stage.started()
    await client.send()
    worker = stage.worker
    await until(lambda: "http" in begun)
    verdict = Exit(signal=9, message="cancelled")
    worker.begin_shutdown(drain=False)
    await stage.worker.kill(verdict)
    assert stage.worker.exited.result() == verdict
    await until(lambda: sorted(cancelled) == ["http", "lifespan"])
    assert await reset_or_closed(client)
    await stage.close()


@pytest.mark.loop(run=run_in_virtual_time)
async def test_worker_that_swallows_its_cancellation_counts_as_ended() -> None:
    release: list[asyncio.Event] = []

    class Swallowing(asyncio.Semaphore):
        async def acquire(self) -> Literal[True]:
            release.append(asyncio.Event())
            while not release[0].is_set():
                try:
                    await release[0].wait()
                except asyncio.CancelledError:
                    release.append(release[0])
            raise RuntimeError("late")

    stage = Stage(turn=Swallowing())
    stage.worker.start([stage.listener])
    await turns()
    verdict = Exit(signal=9, message="cancelled")
    await stage.worker.kill(verdict)
    assert stage.worker.exited.result() == verdict
    assert len(release) - 1 == 25
    assert asyncio.get_running_loop().time() == pytest.approx(0.05 + 25 * 0.2)
    release[0].set()
    await turns()
    assert stage.worker.exited.result() == verdict
    await stage.close()


@pytest.mark.loop(run=run_in_virtual_time)
async def test_task_that_ends_by_itself_in_a_moment_is_not_cancelled() -> None:
    said: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        said.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        said.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    stage = Stage(app)
    client = await stage.started()
    stage.worker.begin_shutdown(drain=False)
    await stage.worker.kill(Exit(message="killed"))
    assert said == ["lifespan.startup", "lifespan.shutdown"]
    assert stage.worker.exited.result() == Exit(message="killed")
    client.close()
    await stage.close()
    await turns()


async def test_client_authority_that_a_renewal_replaces_is_no_longer_trusted(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    first, second = (certificate(tmp_path, name) for name in ("first", "second"))

    def requiring(authority: Path) -> TLSConfig:
        return TLSConfig(cert=str(cert), key=str(key), ca=str(authority), client_auth="required")

    async def answer_to(client: tuple[Path, Path], port: int) -> str:
        context = ssl.create_default_context(cafile=str(cert))
        context.load_cert_chain(*client)
        connection = asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        return await text(Client(*await connection))

    stage = Stage(tls=requiring(first[0]))
    stage.worker.start([stage.listener])
    assert await answer_to(first, stage.port) == "hello"
    stage.worker.reload_tls(stage.worker.server.model_copy(update={"tls": requiring(second[0])}))
    assert await answer_to(second, stage.port) == "hello"
    with pytest.raises((OSError, EOFError)):
        await answer_to(first, stage.port)
    await stage.close()
