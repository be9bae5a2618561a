"""Each of uvicorn's inner parts that workers rely on is listed, and is there in the installed version."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import logging
import os
import re
import socket
import ssl
import sys
import time
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.http.h11_impl import H11Protocol
from websockets.asyncio.client import connect

import poolctl
from poolctl.bootstrap import MIN_UVICORN
from poolctl.config import ServerConfig
from poolctl.runners.worker_spec import uvicorn_settings
from poolctl.worker.serving import uvicorn_parts
from poolctl.worker.serving import uvicorn_parts as parts
from poolctl.worker.serving.http1_connection import Http1Connection
from poolctl.worker.serving.pool_server import connection_class
from poolctl.worker.serving.uvicorn_parts import Receive, RequiredProtocolMembers, Scope, Send, ssl_context
from tests.asgi_apps import saying
from tests.certificates import certificate
from tests.serving import PLAIN, App, Client, Engine, Pair, blank_page, served, turns, until

PACKAGE = Path(poolctl.__file__).parent
SERVING = PACKAGE / "worker" / "serving"
HTTP = {
    "httptools_impl.HttpToolsProtocol": parts.HTTPTOOLS,
    "h11_impl.H11Protocol": parts.H11,
}
# A configuration, once it is loaded.
CONFIG = (
    "access_log", "app", "backlog", "date_header", "encoded_headers", "forwarded_allow_ips", "get_loop_factory",
    "h11_max_incomplete_event_size", "http", "http_protocol_class", "lifespan_class", "limit_concurrency",
    "limit_max_requests", "limit_max_requests_jitter", "load", "loaded", "loaded_app", "proxy_headers",
    "ssl", "ws", "ws_protocol_class",
)  # fmt: skip
SERVER = (
    "config", "limit_max_requests", "main_loop", "run", "server_state", "should_exit", "shutdown", "started",
    "startup",
)  # fmt: skip
# Attributes that the server sets at its start.
STARTED_SERVER = ("lifespan", "servers")
LIFESPAN = ("logger", "should_exit", "shutdown", "state")
STATE = ("connections", "default_headers", "tasks", "total_requests")

VERSION = tuple(map(int, uvicorn.__version__.split(".")[:2]))
WEBSOCKETS_SINCE = (0, 53)
WEBSOCKETS = {
    "WebSocketsSansIOProtocol": "websockets_sansio_impl",
    "WSProtocol": "wsproto_impl",
    "WebSocketProtocol": "websockets_impl",
}


def both(first: RequiredProtocolMembers, second: RequiredProtocolMembers) -> RequiredProtocolMembers:
    return RequiredProtocolMembers(*(one + other for one, other in zip(first, second, strict=True)))


def protocol(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"uvicorn.protocols.{module}"), name)
    except ImportError:
        pytest.skip(f"this environment has no {module}")


@pytest.mark.parametrize("path", HTTP)
def test_protocol_class_for_http1_has_every_part(path: str) -> None:
    module, name = path.split(".")
    assert both(parts.HTTP1, HTTP[path]).missing(protocol(f"http.{module}", name)) == set()


@pytest.mark.filterwarnings("ignore::Warning")  # one of them is deprecated
@pytest.mark.parametrize("name", parts.WEBSOCKETS)
def test_protocol_class_for_websockets_has_every_part(name: str) -> None:
    found = protocol(f"websockets.{WEBSOCKETS[name]}", name)
    if VERSION < WEBSOCKETS_SINCE and name != "WebSocketProtocol":
        pytest.skip("this version of uvicorn closes them in its own way")
    assert parts.WEBSOCKETS[name].missing(found) == set()


@pytest.mark.parametrize("implementation", ["httptools", "h11"])
def test_module_has_the_application_that_answers_above_the_limit(implementation: str) -> None:
    module = importlib.import_module(f"uvicorn.protocols.http.{implementation}_impl")
    assert callable(getattr(module, parts.BUSY_APP))


@pytest.mark.loop(run=Engine("asyncio", "h11").run)
async def test_configuration_server_and_state_have_every_part() -> None:
    async with served(Engine("asyncio", "h11")) as (server, _, port, running):
        assert [each for each in CONFIG if not hasattr(server.config, each)] == []
        assert [each for each in SERVER if not hasattr(server, each)] == []
        assert [each for each in STARTED_SERVER if not hasattr(server, each)] == []
        assert [each for each in LIFESPAN if not hasattr(server.lifespan, each)] == []
        assert [each for each in STATE if not hasattr(uvicorn.server.ServerState(), each)] == []
        client = await Client.connect(port)
        assert (await client.get())[0] == 200
        server.stop()
        await asyncio.wait_for(running, 15)


def test_modules_that_are_imported_before_the_first_fork_exist() -> None:
    for name in parts.MODULES:
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.slow
def test_only_the_list_imports_from_below_uvicorn() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "uvicorn." in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvicorn.")
    }
    assert found == {"worker/serving/uvicorn_parts.py"}


def test_names_used_of_uvicorns_objects_are_listed() -> None:
    listed = {
        "cycle": {*parts.HTTP1.cycle, *parts.HTTPTOOLS.cycle},
        "newest": {*parts.HTTP1.cycle},
        "config": {*CONFIG},
        "super": {"__init__", *parts.HTTP1.methods, *parts.HTTPTOOLS.methods, *parts.H11.methods},
    }
    unlisted = {
        f"{path.name}: {holder}.{name}"
        for path in SERVING.glob("*.py")
        for holder, name in uses(ast.parse(path.read_text()))
        if holder in listed and name not in listed[holder] and not name.startswith("__")
        if holder != "super" or path.stem == "http1_connection"
    }
    assert unlisted == set()


def test_names_used_of_a_websocket_are_listed() -> None:
    tree = ast.parse((SERVING / "pool_server.py").read_text())
    listed = {name for each in parts.WEBSOCKETS.values() for name in (*each.methods, *each.attributes)}
    assert {name for holder, name in uses(tree) if holder == "websocket"} <= listed


def test_names_that_connections_take_from_uvicorns_classes_are_listed() -> None:
    tree = ast.parse((SERVING / "http1_connection.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    connections = [
        each for each in classes if each.name.endswith("Connection") and each.name != "DataDiscardingProtocol"
    ]
    assert len(connections) == 4
    own = {name for each in connections for name in defined(each)}
    listed = {
        name
        for each in (parts.HTTP1, parts.HTTPTOOLS, parts.H11)
        for name in (*each.methods, *each.attributes)
    }
    used = {name for each in connections for holder, name in uses(each) if holder == "self"}
    assert used - own <= listed


def test_installed_version_is_not_older_than_documented() -> None:
    text = (PACKAGE.parent / "docs" / "environment.md").read_text()
    found = re.search(r"tested with (\d+\.\d+) to (\d+\.\d+)", text)
    assert found is not None
    oldest, newest = (tuple(map(int, each.split("."))) for each in found.groups())
    assert oldest == MIN_UVICORN
    if newest < VERSION:
        pytest.skip("uvicorn is newer than docs/environment.md says: run `make matrix`, and name it there")
    assert oldest <= VERSION


def test_oldest_version_is_the_declared_and_the_documented_one() -> None:
    root, oldest = PACKAGE.parent, ".".join(map(str, MIN_UVICORN))
    for project in (root, root / "examples" / "existing-project"):
        declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
        assert f"uvicorn>={oldest}" in declared
    assert f"needs uvicorn {oldest} or newer" in (root / "docs" / "environment.md").read_text()


def uses(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each attribute that is used, with the last part of what it is used of; `super` for super()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            match node.value:
                case ast.Name(id=holder) | ast.Attribute(attr=holder) | ast.Call(func=ast.Name(id=holder)):
                    yield holder, node.attr


def defined(mixin: ast.ClassDef) -> Iterator[str]:
    """What a mixin has of its own; annotations alone declare what is the protocol class's."""
    for node in ast.walk(mixin):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            names = [each.id for each in node.targets if isinstance(each, ast.Name)]
            yield from ast.literal_eval(node.value) if names == ["__slots__"] else names
            private = (each for each in node.targets if isinstance(each, ast.Attribute))
            yield from (each.attr for each in private if each.attr.startswith("_"))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
            yield node.target.attr


def plain(**keys: object) -> ServerConfig:
    return ServerConfig(name="web", bind="127.0.0.1:8000", app="hello:app", **keys)


def test_configuration_serves_applications_of_both_interfaces() -> None:
    def asgi2(scope: Scope) -> Callable[[Receive, Send], Awaitable[None]]:
        async def answer(receive: Receive, send: Send) -> None: ...

        return answer

    interfaces = []
    for app in (asgi2, saying("hello"), asgi2):
        config = uvicorn_parts.configure(app, uvicorn_settings(plain()))
        config.load()
        interfaces.append(config.interface)
    assert interfaces == ["asgi2", "asgi3", "asgi2"]


def test_log_level_is_set_before_the_application_can_and_uvicorn_does_not_set_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")]
    for each in loggers:
        monkeypatch.setattr(each, "level", logging.INFO)
        monkeypatch.setattr(each, "_cache", {})
    assert parts.apply_and_drop_level({"http": "h11"}) == {"http": "h11"}
    assert [each.level for each in loggers] == [logging.INFO] * 3
    assert parts.apply_and_drop_level({"http": "h11", "log_level": "error"}) == {"http": "h11"}
    assert [each.level for each in loggers] == [logging.ERROR] * 3


# A certificate is renewed while connections are open and others come.

SETTINGS = {"password": None, "client_auth": "none", "min_version": "1.2", "ciphers": ""}


def context(directory: Path, name: str) -> ssl.SSLContext:
    fds = [os.open(path, os.O_RDONLY) for path in certificate(directory, name)]
    try:
        return ssl_context(SETTINGS, fds)
    finally:
        for fd in fds:
            os.close(fd)


def trusting(directory: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(directory / f"{name}.pem"))


async def secure(port: int, directory: Path, name: str) -> Client:
    return Client(
        *await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(directory, name), server_hostname="127.0.0.1"
        )
    )


async def test_new_handshakes_use_the_new_certificate_and_open_connections_go_on(
    any_engine: Engine, tmp_path: Path
) -> None:
    old, new = context(tmp_path, "old"), context(tmp_path, "new")

    async with served(any_engine, secure=old) as (server, _, port, _running):
        before = await secure(port, tmp_path, "old")
        assert (await before.get())[0] == 200
        server.config.ssl = new
        with pytest.raises(ssl.SSLCertVerificationError):
            await secure(port, tmp_path, "old")
        after = await secure(port, tmp_path, "new")
        assert (await after.get())[0] == 200
        assert (await before.get())[0] == 200


async def test_drain_waits_for_a_tls_handshake_in_progress(any_engine: Engine, tmp_path: Path) -> None:
    certified = context(tmp_path, "same")

    async with served(any_engine, secure=certified) as (server, _, port, running):
        client = await Client.connect(port)
        await until(lambda: server.server_state.expected)  # accepted, and nothing was said
        server.drain()
        await turns()
        assert not running.done()
        await client.writer.start_tls(trusting(tmp_path, "same"), server_hostname="127.0.0.1")
        assert (await client.get())[0] == 200
        await asyncio.wait_for(running, 15)


async def test_connections_that_are_taken_use_the_new_certificate(
    any_engine: Engine, pair: Pair, tmp_path: Path
) -> None:
    old, new = context(tmp_path, "old"), context(tmp_path, "new")
    async with served(any_engine, secure=old, adoption=pair.worker()) as (server, _, _port, _running):
        server.config.ssl = new
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connecting = asyncio.ensure_future(secure(listener.getsockname()[1], tmp_path, "new"))
            listener.setblocking(False)
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            pair.hand_over(sock)
            assert (await (await connecting).get())[0] == 200


# A protocol class of uvicorn's that is not known closes its connections in a drain, and serves until then.


class Unheard(asyncio.Protocol):
    """What uvicorn's server asks of every protocol class, and no more."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self.connections = server_state.connections

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def shutdown(self) -> None:
        self.transport.close()


async def test_unknown_protocol_class_serves_and_is_closed_by_a_drain(engine: Engine, capsys: Any) -> None:
    async with served(engine, config={"http": Unheard}) as (server, _, port, running):
        client = await Client.connect(port)
        assert (await client.get())[0] == 200
        server.drain()
        assert await client.at_end()
        await asyncio.wait_for(running, 10)
    assert "Unheard is not known to this version of poolctl" in capsys.readouterr().err


class Counted(H11Protocol):
    """A class that poolctl does not know, with the date and the number of responses as all of uvicorn's have them."""


@pytest.mark.loop(run=PLAIN.run)
async def test_unknown_protocol_class_has_the_current_date_and_is_replaced_after_its_requests() -> None:
    config = {"http": Counted, "limit_max_requests": 3}
    async with served(PLAIN, config=config) as (server, _, port, running):
        await until(lambda: server.server_state.default_headers)
        client = await Client.connect(port)
        for _ in range(3):
            _, headers, _ = await client.get()
            assert abs(parsedate_to_datetime(headers["date"]).timestamp() - time.time()) < 5
        assert await client.at_end()
        await asyncio.wait_for(running, 10)


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_a_class_that_can_be_drained(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    if not there:
        monkeypatch.setitem(sys.modules, "httptools", None)
    expected = "httptools" if there else "h11"
    assert uvicorn_parts.settings_for(None, {"http": "auto", "loop": "auto"}) == {
        "http": expected,
        "loop": "auto",
    }
    assert uvicorn_parts.settings_for(None, {"http": "h11"}) == {"http": "h11"}


def test_known_protocol_class_that_lacks_a_part_counts_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert issubclass(connection_class(H11Protocol), Http1Connection)
    with monkeypatch.context() as patch:
        patch.delattr(H11Protocol, "handle_events")
        assert connection_class(H11Protocol) is H11Protocol
    # uvicorn's object for a request, whose transport the connection takes the place of.
    monkeypatch.setattr(h11_impl, "RequestResponseCycle", object)
    assert connection_class(H11Protocol) is H11Protocol


async def test_connections_share_the_names_of_their_attributes(any_engine: Engine) -> None:
    # CPython has room for thirty (SHARED_KEYS_MAX_SIZE); with more each object has a table of its own.
    async with served(any_engine, tally=blank_page()) as (server, _, port, _running):
        client = await Client.connect(port)
        await client.get()
        (connection,) = server.server_state.connections
        assert len(vars(connection)) < 30


# What applications log with uvicorn's logger appears as under uvicorn; what uvicorn says at INFO, poolctl says.

LOGGER = logging.getLogger("uvicorn.error")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What reaches a worker's log; logging is restored afterwards."""
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")]
    before = [(each, each.level, each.filters[:]) for each in loggers]
    logged: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        logged.append(f"{record.levelname} {record.getMessage()}")
        return True

    LOGGER.setLevel(logging.INFO)
    uvicorn_parts.omit_uvicorns_lines()
    LOGGER.addFilter(keep)
    yield logged
    for each, level, filters in before:
        each.setLevel(level)
        each.filters[:] = filters


class Logging(App):
    """Logs each request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        LOGGER.info("application: %s", scope["type"])
        if scope.get("path") == "/fails":
            raise RuntimeError("on purpose")
        await super().__call__(scope, receive, send)


async def test_log_has_what_the_application_logs_and_not_uvicorns_start_and_stop(
    engine: Engine, lines: list[str]
) -> None:
    async with served(engine, Logging()) as (_, _app, port, _running):
        client = await Client.connect(port)
        await client.get()
        await client.get("/fails")
        async with connect(f"ws://127.0.0.1:{port}/"):
            pass
    assert lines == [
        "INFO application: lifespan",
        "INFO application: http",
        "INFO application: http",
        "ERROR Exception in ASGI application\n",
        "INFO application: websocket",
    ]


def test_level_that_the_application_sets_at_its_import_wins(lines: list[str]) -> None:
    settings = uvicorn_parts.apply_and_drop_level({"loop": "auto", "log_level": "warning"})
    assert settings == {"loop": "auto"}
    LOGGER.info("left out")
    LOGGER.setLevel(logging.DEBUG)
    uvicorn.Config(App(), log_config=None, **settings)
    LOGGER.debug("kept")
    assert lines == ["DEBUG kept"]


def test_trace_shows_what_uvicorn_does(lines: list[str]) -> None:
    uvicorn_parts.apply_and_drop_level({"log_level": "trace"})
    LOGGER.log(5, "a trace")
    assert [line.partition(" ")[2] for line in lines] == ["a trace"]
