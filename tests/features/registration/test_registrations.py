"""Registered services behind a real edge, and registrations from elsewhere: who may register what."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.control.answers import Result
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import ServerError
from poolctl.features.gateway.supervision.route_tables import RouteTableManager
from poolctl.features.gateway.table import GatewayConfig, RouteConfig, StreamConfig
from poolctl.features.registration import registrations
from poolctl.features.registration import site as registration_site
from poolctl.features.registration._services import FORGOTTEN_SECONDS, registration_of
from poolctl.features.registration.registrations import TargetRegistration, site_settings, target_problem
from poolctl.features.registration.site import AuthorizedClient, RegistrationSite
from poolctl.features.registration.table import RegistrationClient, RegistrationTable
from poolctl.json_form import to_json
from poolctl.keeper import fd_store, pool_files
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import JournalEvent
from poolctl.platform import read_file
from poolctl.routing.route_table import RouteTable
from poolctl.runners.helper_process import Helpers
from poolctl.runners.listener_opener import Opener
from poolctl.selection.selector import Selector
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.verb import Call
from poolctl.supervisor.web_addresses import WebServer
from poolctl.web.bearer_tokens import MAX_WRONG_TOKENS, WRONG_TOKEN_SECONDS, Peer, TokenCheck
from poolctl.web.site_server import SiteServer
from tests.coroutines import staged_by
from tests.deadline import until
from tests.manual_clock import ManualClock
from tests.sandbox import run_with_hosts
from tests.temporary_directory import temporary_directory
from tests.unit.supervisor.desk import part_context
from tests.unit.web.greeter import Direct

from .routed_stage import Backend, Stage, Wire, play

ROUTES = (RouteConfig(alias="users", path="/users", register=True),)
FAST = {
    "http": "/health",
    "interval": 0.01,
    "timeout": 60,
    "fall_count_warn": 1,
    "fall_count_ko": 1,
    "jitter": 0,
}


class Keeper:
    """Holds the last content of each entry."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if message["op"] == "put":
            self.entries[message["name"]] = read_file(fds[0])

    @property
    def services(self) -> list[Any]:
        """The services that were saved last."""
        found: list[Any] = json.loads(self.entries[fd_store.REGISTRATIONS])["services"]
        return found

    async def call(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        if message["name"] not in self.entries:
            return {}, []
        fd = os.memfd_create("entry")
        os.write(fd, self.entries[message["name"]])
        return {}, [fd]


class BusyKeeper(Keeper):
    """Answers after a lot of other work."""

    async def call(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        for _ in range(20):
            await in_daemon_thread(lambda: None)
        return await super().call(message)


class Registry:
    """A TargetRegistration whose routes are those of the stage, with what a previous supervisor left."""

    def __init__(
        self,
        stage: Stage,
        keeper: Keeper | None = None,
        directory: str = "",
        state_directory: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.stage = stage
        self.keeper = keeper or Keeper()
        self.directory = directory or temporary_directory(self)
        self.state_directory = state_directory or temporary_directory(self)
        self.recorded: list[JournalEvent] = []
        events = EventBus(Clock())
        events.subscribe(self.recorded.append)
        tables = Tables(gateway=GatewayConfig(), route=ROUTES)
        self.routes = RouteTableManager(lambda: ((), tables), self._changed, temporary_directory(self))
        self.tables = tables
        gateway: Any = self
        self.gateway: Any = None
        self.late = ""
        link: Any = self.keeper
        environment: Any = SimpleNamespace(
            keeper=link,
            directory=self.directory,
            state_directory=self.state_directory,
            helpers=Helpers(link, self.directory),
            opener=Opener(),
        )
        core: Any = SimpleNamespace(clock=clock or Clock(), runner=None)
        self.web = WebServer(environment, events)
        site = part_context(core, events, environment)._replace(web=self.web)
        keeper_link: Any = self.keeper
        self.manager = TargetRegistration(site._replace(store=StateStore(keeper_link, self.directory)))
        self.manager.connect(gateway)
        self.routes.schedule_computation()
        self.events = events

    def _changed(self) -> None:
        assert self.routes.table is not None
        self.stage.table = RouteTable(self.routes.table.fileno())

    async def wait_until_applied(self, limit_seconds: float | None = None) -> str:
        await self.routes.wait_until_current()
        return self.late

    async def ask(self, verb: str, **options: Any) -> Any:
        call = Call(Selector(), {"timeout": None, **options}, lambda line: None, lambda: {"uid": 7})
        return to_json(await getattr(self.manager, verb)(call))

    @property
    def trail(self) -> list[tuple[str, str]]:
        self.events.flush()
        return [(each.kind, each.event) for each in self.recorded]

    async def urls(self) -> list[str]:
        await self.routes.wait_until_current()
        return [each.url for each in self.manager]

    async def close(self) -> None:
        await self.manager.stop_serving()
        await self.web.aclose()
        self.routes.close()
        for directory in (self.directory, self.state_directory):
            shutil.rmtree(directory, ignore_errors=True)


async def asked(stage: Stage, path: str = "/users") -> bytes:
    """The status line and the body of the answer to a request of its own."""
    return await stage.ask(path)


class Health:
    """A service whose health is `status`."""

    def __init__(self) -> None:
        self.status = b"200 OK"

    async def script(self, backend: Backend, wire: Wire) -> None:
        head = await wire.head()
        status = self.status if b"GET /health " in head else b"200 OK"
        await wire.send(b"HTTP/1.1 %s\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello" % status)


@staged_by(play)
async def test_service_that_has_left_gets_no_request_after_the_answer(stage: Stage, /) -> None:
    registry = Registry(stage)
    health = Health()
    first, second = [await stage.backend(health.script) for _ in range(2)]
    assert (await registry.ask("register", name="users", to=first.url))["exit_code"] == 0
    assert await asked(stage) == b"200 hello"
    await registry.ask("register", name="users", to=second.url, ttl=60)
    await registry.ask("unregister", name="users", to=first.url.upper())
    before = first.connections
    assert [await asked(stage) for _ in range(3)] == [b"200 hello"] * 3
    assert first.connections == before
    # Its last heartbeat makes its time-to-live pass soon.
    await registry.ask("register", name="users", to=second.url, ttl=0.001)
    await until(lambda: ("pool", "backend expired") in registry.trail)
    await registry.routes.wait_until_current()
    assert await asked(stage) == b"503"
    assert (await registry.ask("unregister", name="users", to=first.url))["exit_code"] == 4
    assert registry.trail == [
        ("audit", "backend registered"),
        ("audit", "backend registered"),
        ("audit", "backend unregistered"),
        ("audit", "backend changed"),
        ("pool", "backend expired"),
    ]
    assert {each.by["uid"] for each in registry.recorded if each.by} == {7}
    await registry.close()


@staged_by(play)
async def test_service_without_a_heartbeat_is_taken_out_when_its_time_has_passed(stage: Stage, /) -> None:
    clock = ManualClock()
    registry = Registry(stage, clock=clock)
    backend = await stage.backend(Health().script)
    await registry.ask("register", name="users", to=backend.url, ttl=0.001)
    assert await asked(stage) == b"200 hello"
    clock.advance(1)
    await until(lambda: ("pool", "backend expired") in registry.trail)
    await registry.routes.wait_until_current()
    assert await asked(stage) == b"503"
    (saved,) = registry.keeper.services
    assert saved["state"] == "silent"
    assert registry.manager.reports("users")[0].state == "silent"
    (family,) = registry.manager.gateway_metrics()
    assert {labels["state"]: count for _, labels, count in family.samples if count} == {"silent": 1}
    clock.advance(FORGOTTEN_SECONDS + 1)
    await registry.ask("register", name="users", to="http://10.0.0.7:9000", ttl=0.001)
    await until(lambda: ("pool", "backend forgotten") in registry.trail)
    assert await registry.urls() == ["http://10.0.0.7:9000"]
    await registry.close()


@staged_by(play)
async def test_registration_is_answered_once_the_gateway_has_it_or_with_a_warning(stage: Stage, /) -> None:
    registry = Registry(stage)
    options = {"name": "users", "to": "http://10.0.0.7:9000"}
    for late in ("", "the gateway is late"):
        registry.late = late
        for verb in ("register", "unregister"):
            assert (await registry.ask(verb, **options)).get("warnings", []) == ([late] if late else [])
    await registry.close()


@staged_by(play)
async def test_pool_without_a_gateway_registers_nothing(stage: Stage, /) -> None:
    registry = Registry(stage)
    assert set(registry.manager.verbs) == {"register", "unregister"}
    registry.tables = Tables()
    manager = TargetRegistration(registry.manager.context)
    for verb, asked in (("register", registry.manager), ("register", manager), ("unregister", manager)):
        call = Call(Selector(), dict(HERE), lambda line: None, dict)
        answer = await asked.verbs[verb](call)
        assert (answer.exit_code, answer.errors[0].message) == (4, "the pool has no gateway")
    await manager.stop_serving()
    await registry.close()


@staged_by(play)
async def test_service_of_another_client_is_neither_changed_nor_removed(stage: Stage, /) -> None:
    registry = Registry(stage)
    call = Call(Selector(), dict(HERE), lambda line: None, dict)
    assert (await registry.manager.register(call, "web")).exit_code == 0
    refused = await registry.manager.register(call, "far")
    assert (refused.exit_code, refused.errors[0].hint) == (
        8,
        "unregister it there, or with `poolctl unregister`",
    )
    unknown = await registry.manager.unregister(call, "far")
    assert (unknown.exit_code, unknown.errors[0].message) == (4, "nothing is registered as 'users'")
    for name, to, message, hint in (
        ("user", "", "nothing is registered as 'user'", "did you mean users?"),
        ("zzz", "", "nothing is registered as 'zzz'", "`poolctl routes` lists the routes"),
        (
            "users",
            "http://127.0.0.1:9001",
            "http://127.0.0.1:9001 is not registered as 'users'",
            "did you mean http://127.0.0.1:9000?",
        ),
    ):
        answer = await registry.ask("unregister", name=name, to=to)
        assert [(each["message"], each["hint"]) for each in answer["errors"]] == [(message, hint)]
    assert await registry.urls() == ["http://127.0.0.1:9000"]
    await registry.close()


@pytest.mark.parametrize("content", ["[", '{"name": "users"}', '["users"]', '{"services": ["users"]}'])
def test_stopped_registrations_that_are_no_list_of_services_are_ignored(content: str, tmp_path: Path) -> None:
    (tmp_path / "stopped-registrations.json").write_text(content)

    async def work(stage: Stage) -> None:
        registry = Registry(stage, state_directory=os.fspath(tmp_path))
        assert await registry.urls() == []
        await registry.close()

    play(work)


def test_registrations_that_cannot_be_saved_are_still_served(caplog: pytest.LogCaptureFixture) -> None:
    async def work(stage: Stage) -> None:
        registry = Registry(stage)
        await registry.urls()
        for directory in (registry.directory, registry.state_directory):
            shutil.rmtree(directory)
        assert (await registry.ask("register", **HERE))["exit_code"] == 0
        await registry.close()

    play(work)
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == [
        "if keeper and supervisor are killed together, registrations are lost",
        "the services that have registered are lost with this stop",
    ]


@staged_by(play)
async def test_failing_service_is_taken_out_and_comes_back(stage: Stage, /) -> None:
    registry = Registry(stage)
    health = Health()
    backend = await stage.backend(health.script)
    (item,) = (await registry.ask("register", name="users", to=backend.url, probe=FAST))["items"]
    assert item["state"] == "starting"
    await until(lambda: ("pool", "backend ready") in registry.trail)
    await registry.routes.wait_until_current()
    assert await asked(stage) == b"200 hello"
    health.status = b"500 Broken"
    await until(lambda: ("pool", "backend flagged") in registry.trail)
    await registry.routes.wait_until_current()
    assert await asked(stage) == b"503"
    assert registry.recorded[-1].cause == "GET /health: status 500"
    health.status = b"200 OK"
    await until(lambda: registry.trail[-1] == ("pool", "backend recovered"))
    await registry.routes.wait_until_current()
    assert await asked(stage) == b"200 hello"
    await registry.close()


@pytest.mark.parametrize(
    ("name", "keys", "host"),
    [
        ("users", {}, b"users.internal"),
        ("shop", {"host": "shop.example.com"}, b"shop.example.com"),
    ],
)
@staged_by(play)
async def test_probe_has_the_host_that_requests_of_the_route_have(
    stage: Stage, /, name: str, keys: dict[str, str], host: bytes
) -> None:
    registry, heads = Registry(stage), list[bytes]()

    async def script(backend: Backend, wire: Wire) -> None:
        heads.append(await wire.head())
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    users = RouteConfig(alias="users", host_header="users.internal", register=True)
    registry.manager.apply_tables(Tables(gateway=GatewayConfig(), route=(users,)))
    backend = await stage.backend(script)
    await registry.ask("register", name=name, to=backend.url, probe=FAST, **keys)
    await until(lambda: bool(heads))
    assert b"\r\nHost: %s\r\n" % host in heads[0]
    await registry.close()


@staged_by(play)
async def test_heartbeats_make_no_other_table_and_are_saved_for_the_next_supervisor(stage: Stage, /) -> None:
    registry = Registry(stage)
    options = {"name": "users", "to": "http://10.0.0.7:9000", "ttl": 30}
    await registry.ask("register", **options)
    generation, computed = registry.routes.generation, []
    registry.routes.schedule_computation = lambda: computed.append(1)  # type: ignore[method-assign]
    for _ in range(200):
        (item,) = (await registry.ask("register", **options))["items"]
    assert (registry.routes.generation, computed) == (generation, [])
    assert 29 < item["left_seconds"] <= 30
    saved = registry.keeper.services
    assert [(each["settings"]["to"], each["state"]) for each in saved] == [
        ("http://10.0.0.7:9000", "serving")
    ]
    url = "http://10.0.0.7:9000"
    # A keeper that was killed with its supervisor holds nothing.
    killed = Registry(stage, directory=registry.directory)
    assert (await killed.urls(), next(iter(killed.manager)).settings.ttl) == ([url], 30.0)
    await registry.manager.stop_serving()
    # A stop leaves them to the next start, and to no other.
    pool_files.remove_left_states(registry.directory)
    started = Registry(stage, state_directory=registry.state_directory)
    assert (await started.urls(), os.listdir(registry.state_directory)) == ([url], [])
    assert await registry.urls() == [url]
    successor = Registry(stage, registry.keeper, registry.directory)
    await successor.routes.wait_until_current()
    assert stage.table is not None
    route = stage.table.find("any", "/users")
    assert route is not None
    assert [each.url for each in route.to] == ["http://10.0.0.7:9000"]
    (again,) = registry.keeper.services
    assert (again["settings"]["to"], again["state"]) == (url, "serving")
    for each in (killed, started, successor):
        await each.close()


@staged_by(play)
async def test_service_of_the_previous_supervisor_can_change_or_leave_at_once(stage: Stage, /) -> None:
    keeper = BusyKeeper()
    options = {"name": "users", "to": "http://10.0.0.7:9000"}
    first = Registry(stage, keeper)
    await first.ask("register", **options)
    second = Registry(stage, keeper, first.directory)
    await second.ask("register", **options, ttl=30)
    assert second.trail == [("audit", "backend changed")]
    third = Registry(stage, keeper, first.directory)
    assert (await third.ask("unregister", **options))["exit_code"] == 0
    for each in (first, second, third):
        await each.close()


@staged_by(play)
async def test_address_that_is_in_use_is_known_once_opening_it_was_attempted(stage: Stage, /) -> None:
    registry = Registry(stage)
    await registry.manager.wait_for_opening_attempt()  # nothing is to be opened without the table
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        table = RegistrationTable(bind=f"127.0.0.1:{port}", client=())
        registry.manager.apply_tables(Tables(gateway=GatewayConfig(), registration=table))
        await registry.manager.wait_for_opening_attempt()
        (problem,) = registry.manager.not_served
        assert problem.startswith(f"[registration]: registration cannot be served: port {port} is in use")
    await registry.close()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"name": "users", "to": "here"}, 5, "to: 'here' is not a URL"),
        ({"name": "users", "to": "http://127.0.0.1:8080"}, 5, "an address of the gateway itself"),
        ({"name": "users", "to": "unix:/etc/passwd"}, 5, "unix:/etc/passwd is not a socket"),
        ({"name": "user", "to": "http://10.0.0.7:1"}, 4, "there is no such route"),
        ({"name": "user", "to": "http://10.0.0.7:1", "host": ""}, 4, "neither a host nor a path"),
        ({"name": "user", "to": "http://10.0.0.7:1", "host": "*"}, 4, "neither a host nor a path"),
        ({"name": "own", "to": "http://10.0.0.7:1", "path": "/users/x"}, 8, "taken by the route 'users'"),
    ],
)
@staged_by(play)
async def test_refused_service_leaves_nothing_behind(
    stage: Stage, /, options: dict[str, str], code: int, message: str
) -> None:
    registry = Registry(stage)
    answer = await registry.ask("register", **options)
    assert (answer["exit_code"], message in answer["errors"][0]["message"]) == (code, True), answer
    assert answer["errors"][0]["message"].startswith("to: ") is (code == 5)
    await registry.routes.wait_until_current()
    assert (len(registry.manager.services), registry.routes.routes.excluded, registry.trail) == (
        0,
        (),
        [],
    )
    await registry.close()


class SilentServer:
    """A server that answers nothing. `accept` returns how many connections there were until now."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("", 0), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []

    def accept(self) -> int:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._connections.append(self._listener.accept()[0])
        return len(self._connections)

    def close_connections(self) -> None:
        for each in self._connections:
            each.close()

    def close(self) -> None:
        self.close_connections()
        self._listener.close()


@staged_by(play)
async def test_unreachable_services_are_probed_a_bounded_number_at_once(stage: Stage, /) -> None:
    registry = Registry(stage)
    with contextlib.closing(SilentServer()) as silent:
        for number in range(1, 41):
            url = f"http://127.0.0.{number}:{silent.port}"
            await registry.ask("register", name="users", to=url, probe=FAST)
        await until(lambda: silent.accept() == 32)
        silent.close_connections()
        await until(lambda: silent.accept() >= 40)
        await registry.close()


TOKEN, OTHER = "0123456789abcdef", "fedcba9876543210"
LONG = 2 * TOKEN
HERE = {"name": "users", "to": "http://127.0.0.1:9000"}


class Services:
    """Takes every registration; `asked` are their verbs, options and owners, `by` the senders for the audit trail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.by: list[dict[str, Any]] = []
        self.exit_code = 0

    async def register(self, call: Call, owner: str = "") -> Result:
        self.by.append(call.by())
        self.asked.append(("register", call.options, owner))
        return Result(exit_code=self.exit_code)

    async def unregister(self, call: Call, owner: str = "") -> Result:
        self.asked.append(("unregister", call.options, owner))
        return Result(exit_code=self.exit_code)


class Endpoint:
    """The site of [registration] on a port of its own, whose supervisor has the verbs of `services`."""

    def __init__(self) -> None:
        self.services = Services()
        verbs = {
            "register": partial(registrations.perform_for_owner, self.services.register),
            "unregister": partial(registrations.perform_for_owner, self.services.unregister),
        }
        self.supervisor = Direct(verbs)
        self.port = 0
        self.clock = ManualClock()
        self.endpoint = RegistrationSite(self.supervisor, self.clock)
        self.endpoint.configure({
            "clients": [
                {"name": "web", "token": TOKEN, "routes": ["users", "reports"], "allow": []},
                {"name": "far", "token": OTHER, "routes": ["users"], "allow": ["10.0.0.0/8"]},
                {"name": "long", "token": LONG, "routes": ["users"], "allow": []},
            ]
        })  # fmt: skip

    async def send(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(
        self, options: object, verb: str = "register", token: str | None = TOKEN, method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"options": options}) if not isinstance(options, str) else options
        bearer = "" if token is None else f"Authorization: Bearer {token}\r\n"
        fields = f"Host: x\r\nConnection: close\r\n{bearer}Content-Length: {len(body)}\r\n"
        head = f"{method} /v1/{verb} HTTP/1.1\r\n{fields}\r\n"
        answer = await self.send((head + body).encode())
        head, _, found = answer.decode().partition("\r\n\r\n")
        return int(head.split()[1]), json.loads(found)


def play_over_http(test: Callable[[Endpoint], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        stage, ready = Endpoint(), asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            stage.port = listener.getsockname()[1]
            server = SiteServer(stage.endpoint)
            serving = asyncio.ensure_future(server.serve_site([listener], ready.set))
            await ready.wait()
            try:
                await asyncio.wait_for(test(stage), 60)
            finally:
                server.stop()
                await serving

    asyncio.run(run())


@staged_by(play_over_http)
async def test_client_registers_and_unregisters_as_itself_and_gets_a_time_to_live(stage: Endpoint, /) -> None:
    assert (await stage.ask(HERE))[0] == 200
    assert (await stage.ask({**HERE, "ttl": "10s", "weight": 2, "probe": "/health"}))[0] == 200
    assert (await stage.ask({"name": "users"}, "unregister"))[0] == 200
    assert stage.services.asked == [
        ("register", {**HERE, "ttl": "1m"}, "web"),
        ("register", {**HERE, "ttl": "10s", "weight": 2, "probe": "/health"}, "web"),
        ("unregister", {"name": "users"}, "web"),
    ]
    assert stage.services.by == [{"user": "web", "command": "registration", "address": "127.0.0.1"}] * 2
    for code, status in ((5, 400), (4, 404), (8, 409), (1, 500)):
        stage.services.exit_code = code
        assert (await stage.ask(HERE))[0] == status


@pytest.mark.parametrize(
    ("options", "given", "status", "message"),
    [
        (HERE, {"token": None}, 401, "the token is missing"),
        (HERE, {"token": ""}, 401, "the token is missing"),
        (HERE, {"token": TOKEN[:-1]}, 401, "wrong token"),
        (HERE, {"token": TOKEN + " "}, 200, ""),
        (HERE, {"token": OTHER}, 403, "far may not register from 127.0.0.1"),
        (HERE, {"method": "GET"}, 405, "only POST"),
        (HERE, {"verb": "stop"}, 404, "the endpoints are"),
        (HERE, {"verb": "../stop"}, 404, "the endpoints are"),
        ({**HERE, "name": "secret"}, {}, 403, "may not register for the route 'secret'"),
        ({**HERE, "name": ["users"]}, {}, 400, "'name' is missing"),
        ({"name": "users"}, {}, 400, "'to' is missing"),
        ({**HERE, "to": 7}, {}, 400, "'to' is missing"),
        ({"name": "users", "to": 7}, {"verb": "unregister"}, 400, "'to' is not a URL"),
        ({**HERE, "ttl": 0}, {}, 400, "needs a ttl"),
        ({**HERE, "host": "bank.example.com"}, {}, 400, "'host' cannot be given here"),
        ({**HERE, "path": "/"}, {}, 400, "'path' cannot be given here"),
        ({**HERE, "timeout": 9e9}, {}, 400, "'timeout' cannot be given here"),
        ("[]", {}, 400, "the body is not"),
        ("[" * 10_000, {}, 400, "not JSON"),
        ({**HERE, "to": "unix:/run/app.sock"}, {}, 403, "a Unix socket is of this machine"),
        ({**HERE, "to": "UNIX:/run/app.sock"}, {}, 403, "a Unix socket is of this machine"),
        ({**HERE, "to": "http://users.example.com:80"}, {}, 403, "is a name, which may lead elsewhere later"),
        (
            {**HERE, "to": "http://localhost:9000"},
            {},
            403,
            "localhost is a name, which may lead elsewhere later",
        ),
        ({**HERE, "to": "http://LocalHost.:9000"}, {}, 403, "localhost is a name"),
    ],
)
@staged_by(play_over_http)
async def test_other_requests_are_refused_with_the_reason(
    stage: Endpoint, /, options: object, given: dict[str, Any], status: int, message: str
) -> None:
    found, answer = await stage.ask(options, **given)
    assert (found, message in answer.get("error", "")) == (status, True), answer
    assert len(stage.services.asked) == (status == 200)


@pytest.mark.parametrize(
    ("given", "status", "field"),
    [
        ({"token": None}, b"401", b"www-authenticate: Bearer"),
        ({"method": "GET"}, b"405", b"allow: POST"),
        ({"wrong": MAX_WRONG_TOKENS}, b"429", b"retry-after: 7"),
        ({"requests": registration_site.MAX_BURST}, b"429", b"retry-after: 1"),
    ],
)
@staged_by(play_over_http)
async def test_refusal_names_what_is_needed_in_a_field(
    stage: Endpoint, /, given: dict[str, Any], status: bytes, field: bytes
) -> None:
    for _ in range(given.get("wrong", 0)):
        await stage.ask(HERE, token="guess")
    stage.endpoint.clients[0].requests.take(given.get("requests", 0), stage.clock.monotonic())
    token = given.get("token", TOKEN)
    bearer = f"Authorization: bearer {token}\r\n" if token else ""
    method = given.get("method", "POST")
    fields = f"Host: x\r\nConnection: close\r\n{bearer}Content-Length: 0\r\n"
    answer = await stage.send(f"{method} /v1/register HTTP/1.1\r\n{fields}\r\n".encode())
    head = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert head[0].split()[1] == status
    assert {field, b"content-type: application/json"} <= set(head[1:])


@staged_by(play_over_http)
async def test_request_that_is_no_http_gets_the_reason_as_json(stage: Endpoint, /) -> None:
    head, _, body = (await stage.send(b"nonsense\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert b"content-type: application/json" in head.lower().split(b"\r\n")
    assert json.loads(body)["error"].startswith("not a request: ")


@staged_by(play_over_http)
async def test_endpoint_without_clients_refuses_every_token(stage: Endpoint, /) -> None:
    stage.endpoint.configure({"clients": []})
    assert (await stage.ask(HERE))[0] == 401


def test_each_client_has_its_token_its_routes_and_its_networks() -> None:
    table = RegistrationTable(
        bind="127.0.0.1:8014",
        client=(
            RegistrationClient(name="web", token_env="WEB", routes=("users",)),
            RegistrationClient(token_env="FAR", routes=("a", "b"), allow=("10.0.0.0/8",)),
        ),
    )
    site = RegistrationSite(Direct({}))
    site.configure(site_settings(table, {"WEB": f" {TOKEN}\n", "FAR": OTHER}).values)
    web, far = site.clients
    assert (web.name, web.routes) == ("web", {"users"})
    assert (far.name, far.routes) == ("FAR", {"a", "b"})
    for text, client in ((TOKEN, web), (OTHER, far)):
        assert TokenCheck().accepted(text.encode(), [web.token, far.token], "", 0.0) is client.token
    assert (web.allows(AWAY.ip), web.allows(NEAR.ip), far.allows(AWAY.ip), far.allows(NEAR.ip)) == (
        True,
        True,
        True,
        False,
    )
    for env in ({"WEB": TOKEN}, {"WEB": TOKEN, "FAR": " "}):
        with pytest.raises(ServerError, match="variable FAR is not set") as raised:
            site_settings(table, env)
        assert raised.value.hint == "export FAR=… before poolctl start"


AWAY, NEAR = Peer(ip_address("10.0.0.9"), "10.0.0.9"), Peer(ip_address("127.0.0.1"), "127.0.0.1")


@pytest.mark.parametrize(
    ("allow", "url", "peer", "problem"),
    [
        ((), "http://10.0.0.7:9000", AWAY, ""),
        ((), "https://10.0.0.7", AWAY, ""),
        ((), "http://[fd00::7]", AWAY, ""),
        ((), "http://127.0.0.1:9000", AWAY, "this machine's own"),
        ((), "http://localhost", NEAR, "localhost is a name"),
        (("127.0.0.0/8",), "http://localhost", NEAR, "localhost is a name"),
        ((), "http://[::1]:9000", AWAY, "this machine's own"),
        ((), "http://[::ffff:127.0.0.1]:9000", AWAY, "this machine's own"),
        ((), "http://127.0.0.1:9000", NEAR, ""),
        ((), "http://127.0.0.1:9000", Peer(None, "uid 0"), ""),
        (("10.0.0.0/8",), "http://10.0.0.7:9000", AWAY, ""),
        (("10.0.0.1/8",), "http://10.0.0.7:9000", AWAY, ""),
        (("10.0.0.0/8",), "http://[::ffff:10.0.0.7]:9000", AWAY, ""),
        (("10.0.0.0/8",), "http://192.168.0.7:9000", AWAY, "not in the networks"),
        (("10.0.0.0/8",), "http://127.0.0.1:9000", NEAR, "not in the networks"),
        (("10.0.0.0/8", "127.0.0.1"), "http://127.0.0.1:9000", AWAY, ""),
        (("*",), "http://192.168.0.7:9000", AWAY, ""),
        (("fd00::/64",), "http://[fd00::7]:9000", AWAY, ""),
        ((), "http://2130706433:80", AWAY, ""),  # refused as no address by all registrations
    ],
)
def test_targets_that_a_client_may_register(
    allow: tuple[str, ...], url: str, peer: Peer, problem: str
) -> None:
    found = AuthorizedClient("web", TOKEN, ("users",), allow).target_problem(url, peer)
    assert problem in found
    assert bool(found) == bool(problem)


@staged_by(play_over_http)
async def test_wrong_tokens_of_an_address_are_few_and_are_recorded_once_a_minute(stage: Endpoint, /) -> None:
    statuses = [(await stage.ask(HERE, token="guess"))[0] for _ in range(MAX_WRONG_TOKENS + 5)]
    assert statuses == [401] * MAX_WRONG_TOKENS + [429] * 5
    # Not even the right one, or a guess would be recognised.
    status, answer = await stage.ask(HERE)
    assert (status, answer) == (429, {"error": "too many wrong tokens; wait 7 s"})
    stage.clock.advance(WRONG_TOKEN_SECONDS + 0.1)
    assert [(await stage.ask(HERE, token="guess"))[0] for _ in range(2)] == [401, 429]
    stage.clock.advance(WRONG_TOKEN_SECONDS + 0.1)
    assert (await stage.ask(HERE))[0] == 200
    stage.clock.advance(60)
    assert (await stage.ask(HERE, token="guess"))[0] == 401
    assert [each["message"] for each in stage.supervisor.reports] == [
        "1 registrations refused, the last one from 127.0.0.1: wrong token",
        f"{MAX_WRONG_TOKENS + 1} registrations refused, the last one from 127.0.0.1: wrong token",
    ]


@staged_by(play_over_http)
async def test_wrong_tokens_of_the_same_address_keep_no_heartbeat_with_a_long_one_out(
    stage: Endpoint, /
) -> None:
    for _ in range(3 * MAX_WRONG_TOKENS):
        await stage.ask(HERE, token="an-old-token-0123456789abcdef0123")
        assert (await stage.ask(HERE, token=LONG))[0] == 200
    assert (await stage.ask(HERE, token=LONG + "x"))[0] == 429
    assert {owner for _, _, owner in stage.services.asked} == {"long"}


@staged_by(play_over_http)
async def test_requests_of_a_client_are_limited_and_so_are_heads_and_bodies(stage: Endpoint, /) -> None:
    large = b"POST /v1/register HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20000
    assert (await stage.send(large)).split()[1] == b"413"
    head = b"POST /v1/register HTTP/1.1\r\nX: " + b"x" * 20000
    assert (await stage.send(head)).split()[1] == b"431"
    stage.endpoint.clients[0].requests.take(registration_site.MAX_BURST, stage.clock.monotonic())
    assert (await stage.ask(HERE))[0] == 429
    stage.clock.advance(1)
    assert (await stage.ask(HERE))[0] == 200


TABLES = Tables(
    gateway=GatewayConfig(bind=(":8080", "10.0.0.7:8443", "[::1]:8444")),  # type: ignore[arg-type]
    metrics=MetricsTable(bind="127.0.0.1:9464"),
    registration=RegistrationTable(bind="0.0.0.0:8014", client=()),
    stream=(StreamConfig(alias="db", bind="127.0.0.1:5432", to=("10.0.0.5:1",)),),  # type: ignore[arg-type]
)
GATEWAY = "an address of the gateway itself"


def problem(url: str, tables: Tables = TABLES) -> str:
    registration = registration_of({"name": "users", "to": url}, [])
    assert registration is not None, url
    return target_problem(registration.to, tables)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", GATEWAY),
        ("http://127.9.9.9:8080", GATEWAY),
        ("http://localhost:8080", GATEWAY),
        ("http://LocalHost.:8080", GATEWAY),
        ("http://a.localhost:8080", GATEWAY),
        ("http://[::1]:8080", GATEWAY),
        ("http://[::ffff:127.0.0.1]:8080", GATEWAY),
        ("http://[::ffff:7f00:1]:8080", GATEWAY),
        ("https://10.0.0.7:8443", GATEWAY),
        ("http://[0:0:0:0:0:0:0:1]:8444", GATEWAY),
        ("http://127.0.0.1:9464", "an address of the pool's own [metrics]"),
        ("http://[::ffff:127.0.0.1]:9464", "an address of the pool's own [metrics]"),
        ("http://localhost:9464", "an address of the pool's own [metrics]"),
        ("http://127.0.0.1:8014", "an address of the pool's own [registration]"),
        ("http://127.0.0.1:5432", "an address of the pool's own [[stream]] db"),
        ("http://169.254.169.254", "is a link-local address"),
        ("http://[::ffff:169.254.169.254]:80", "is a link-local address"),
        ("http://[::ffff:a9fe:a9fe]", "is a link-local address"),
        ("http://[fe80::1]:9000", "is a link-local address"),
        ("http://[fe80::1%25lo]:9000", "is a link-local address"),
        ("http://224.0.0.1:9000", "is not the address of a service"),
    ],
)
def test_own_and_link_local_addresses_are_refused(url: str, expected: str) -> None:
    assert expected in problem(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000",
        "http://127.0.0.2:9464",
        "http://10.0.0.7:8444",
        "http://198.51.100.7:8080",
        "http://no-such-host.invalid:8080",
        "unix:/run/users.sock",
    ],
)
def test_other_addresses_are_not(url: str) -> None:
    assert problem(url) == ""


def test_name_is_refused_for_each_address_that_it_has(tmp_path: Path) -> None:
    hosts = {
        "own.example": ["10.0.0.8", "10.0.0.7"],
        "mapped.example": ["::ffff:10.0.0.7"],
        "near.example": ["2001:db8::1", "fe80::1"],
        "other.example": ["10.0.0.8"],
    }

    def refuse() -> None:
        assert GATEWAY in problem("http://own.example:8443")
        assert problem("http://own.example:8444") == ""
        assert GATEWAY in problem("http://mapped.example:8443")
        assert "is a link-local address" in problem("http://near.example:80")
        assert problem("http://other.example:8443") == ""
        addresses = registrations.resolve_addresses("near.example")
        assert {*addresses} == {ip_address("2001:db8::1"), ip_address("fe80::1")}

    run_with_hosts(tmp_path, hosts, refuse)


def test_name_that_cannot_be_one_has_no_address() -> None:
    assert registrations.resolve_addresses(f"{'a' * 64}.example") == []


def test_every_address_of_this_machine_reaches_a_wildcard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # which sends nothing
        except OSError:
            pytest.skip("this machine has no address besides loopback")
        own = probe.getsockname()[0]
    assert GATEWAY in problem(f"http://{own}:8080")


def test_sockets_of_poolctl_are_refused_by_whatever_name(short_path: Path) -> None:
    pool = short_path / "0123456789ab"
    pool.mkdir()
    with socket.socket(socket.AF_UNIX) as control, socket.socket(socket.AF_UNIX) as gateway:
        control.bind(os.fspath(pool / "control.sock"))
        gateway.bind(os.fspath(short_path / "gateway.sock"))
        (short_path / "link.sock").symlink_to(pool / "control.sock")
        os.link(short_path / "gateway.sock", short_path / "other.sock")
        tables = Tables(gateway=GatewayConfig(bind=(f"unix:{short_path}/gateway.sock",)))  # type: ignore[arg-type]
        for path in ("0123456789ab/control.sock", "0123456789ab/../link.sock", "0123456789ab/keeper.sock"):
            assert "is a socket of poolctl's own" in problem(f"unix:{short_path}/{path}", tables)
        for path in ("gateway.sock", "other.sock"):
            assert GATEWAY in problem(f"unix:{short_path}/{path}", tables)
        assert problem(f"unix:{short_path}/app.sock", tables) == "", "its service may be starting"
        (short_path / "file").touch()
        (short_path / "link").symlink_to("file")
        for path in ("file", "link", ""):
            assert problem(f"unix:{short_path}/{path}", tables).endswith(" is not a socket")
        with socket.socket(socket.AF_UNIX) as app:
            app.bind(os.fspath(short_path / "app.sock"))
            assert problem(f"unix:{short_path}/app.sock", tables) == ""
