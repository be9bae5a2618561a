"""Registered services behind a real edge: requests reach those that are there, and no other one after that."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.features.gateway.supervision.computed_routes import ComputedRoutes
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.features.registration._services import registration_of
from poolctl.features.registration.registrations import TargetRegistration
from poolctl.json_form import to_json
from poolctl.keeper import fd_store, pool_files
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import JournalEvent
from poolctl.platform import read_file
from poolctl.routing.route_table import RouteTable
from poolctl.selection.selector import Selector
from poolctl.supervisor.verbs.verb import Call
from tests.features.gateway.proxy_stage import Backend, Stage, Wire, play
from tests.unit.supervisor.desk import part_site

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

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        self.entries[message["name"]] = read_file(fds[0])

    async def call(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        if message["name"] not in self.entries:
            return {}, []
        fd = os.memfd_create("entry")
        os.write(fd, self.entries[message["name"]])
        return {}, [fd]


class Registry:
    """A TargetRegistration whose routes are those of the stage's edge, with what a previous supervisor left."""

    def __init__(
        self, stage: Stage, keeper: Keeper | None = None, directory: str = "", state_directory: str = ""
    ) -> None:
        self.edge = stage.edge
        self.keeper = keeper or Keeper()
        self.directory = directory or tempfile.mkdtemp()
        self.state_directory = state_directory or tempfile.mkdtemp()
        self.recorded: list[JournalEvent] = []
        events = Events(Clock())
        events.subscribe(self.recorded.append)
        tables = Tables(gateway=GatewayConfig(), routes=ROUTES)
        self.routes = ComputedRoutes(
            self._changed, lambda servers, *, adopted: asyncio.sleep(0), tempfile.mkdtemp()
        )
        self.tables = tables
        gateway: Any = self
        self.gateway = None
        environment: Any = SimpleNamespace(
            keeper=self.keeper, directory=self.directory, state_directory=self.state_directory
        )
        core: Any = SimpleNamespace(clock=Clock())
        self.manager = TargetRegistration(part_site(core, events, environment))
        self.manager.connect(gateway)
        self.routes.compute(lambda: ((), tables))
        self.events = events

    def _changed(self) -> None:
        assert self.routes.table is not None
        self.edge.table = RouteTable(self.routes.table.fileno())
        self.edge.backends.apply([*self.edge.table], {})

    async def in_force(self, limit_seconds: float | None = None) -> str:
        await self.routes.settled()
        return ""

    async def ask(self, verb: str, **options: Any) -> Any:
        call = Call(Selector(), {"timeout": None, **options}, lambda line: None, lambda: {"uid": 7})
        return to_json(await getattr(self.manager, verb)(call))

    @property
    def trail(self) -> list[tuple[str, str]]:
        self.events.flush()
        return [(each.kind, each.event) for each in self.recorded]

    async def urls(self) -> list[str]:
        await self.routes.settled()
        return [each.url for each in self.manager]

    async def close(self) -> None:
        await self.manager.stop_serving()
        self.routes.close()
        for directory in (self.directory, self.state_directory):
            shutil.rmtree(directory, ignore_errors=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def asked(stage: Stage, path: str = "/users") -> bytes:
    """The status line and the body of the answer to a request of its own."""
    client = await stage.client()
    await client.send(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
    head, body = await client.response()
    return head.split()[1] + b" " + body if body == b"hello" else head.split()[1]


class Health:
    """A service whose health is `status`."""

    def __init__(self) -> None:
        self.status = b"200 OK"

    async def script(self, backend: Backend, wire: Wire) -> None:
        while True:
            head = await backend.request(wire)
            status = self.status if b"GET /health " in head else b"200 OK"
            await wire.send(b"HTTP/1.1 %s\r\nContent-Length: 5\r\n\r\nhello" % status)


def test_service_that_has_left_gets_no_request_after_the_answer() -> None:
    async def work(stage: Stage) -> None:
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
        await registry.routes.settled()
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

    play(work)


def test_failing_service_is_taken_out_and_comes_back() -> None:
    async def work(stage: Stage) -> None:
        registry = Registry(stage)
        health = Health()
        backend = await stage.backend(health.script)
        (item,) = (await registry.ask("register", name="users", to=backend.url, probe=FAST))["items"]
        assert item["state"] == "starting"
        await until(lambda: ("pool", "backend ready") in registry.trail)
        await registry.routes.settled()
        assert await asked(stage) == b"200 hello"
        health.status = b"500 Broken"
        await until(lambda: ("pool", "backend flagged") in registry.trail)
        await registry.routes.settled()
        assert await asked(stage) == b"503"
        assert registry.recorded[-1].cause == "GET /health: status 500"
        health.status = b"200 OK"
        await until(lambda: registry.trail[-1] == ("pool", "backend recovered"))
        await registry.routes.settled()
        assert await asked(stage) == b"200 hello"
        await registry.close()

    play(work)


def test_heartbeats_make_no_other_table_and_are_saved_for_the_next_supervisor() -> None:
    async def work(stage: Stage) -> None:
        registry = Registry(stage)
        options = {"name": "users", "to": "http://10.0.0.7:9000", "ttl": 30}
        await registry.ask("register", **options)
        generation, computed = registry.routes.generation, []
        registry.routes.again = lambda: computed.append(1)  # type: ignore[method-assign]
        for _ in range(200):
            (item,) = (await registry.ask("register", **options))["items"]
        assert (registry.routes.generation, computed) == (generation, [])
        assert 29 < item["left_seconds"] <= 30
        saved = json.loads(registry.keeper.entries[fd_store.REGISTRATIONS])
        assert [(each["settings"]["to"], each["state"]) for each in saved] == [
            ("http://10.0.0.7:9000", "serving")
        ]
        url = "http://10.0.0.7:9000"
        # A keeper that was killed with its supervisor holds nothing.
        killed = Registry(stage, directory=registry.directory)
        assert (await killed.urls(), next(iter(killed.manager)).settings.ttl) == ([url], 30.0)
        await registry.manager.stop_serving()
        # A stop leaves them to the next start, and to no other.
        pool_files.remove_desired(registry.directory)
        started = Registry(stage, state_directory=registry.state_directory)
        assert (await started.urls(), os.listdir(registry.state_directory)) == ([url], [])
        assert await registry.urls() == [url]
        successor = Registry(stage, registry.keeper, registry.directory)
        await successor.routes.settled()
        match = stage.edge.table.find("any", "/users")
        assert match is not None
        assert [each.url for each in match.route.to] == ["http://10.0.0.7:9000"]
        for each in (killed, started, successor):
            await each.close()

    play(work)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"name": "users", "to": "here"}, 5, "to: 'here' is no URL"),
        ({"name": "users", "to": "http://127.0.0.1:8080"}, 5, "an address of the gateway itself"),
        ({"name": "user", "to": "http://10.0.0.7:1"}, 4, "there is no such route"),
        ({"name": "own", "to": "http://10.0.0.7:1", "path": "/users/x"}, 8, "taken by the route 'users'"),
    ],
)
def test_refused_service_leaves_nothing_behind(options: dict[str, str], code: int, message: str) -> None:
    async def work(stage: Stage) -> None:
        registry = Registry(stage)
        answer = await registry.ask("register", **options)
        assert (answer["exit_code"], message in answer["errors"][0]["message"]) == (code, True), answer
        await registry.routes.settled()
        assert (len(registry.manager.services), registry.routes.routes.excluded, registry.trail) == (
            0,
            (),
            [],
        )
        await registry.close()

    play(work)


def test_unreachable_services_are_probed_a_bounded_number_at_once() -> None:
    async def work(stage: Stage) -> None:
        registry = Registry(stage)
        over = asyncio.Event()

        async def hang(backend: Backend, wire: Wire) -> None:
            await over.wait()

        hanging = await stage.backend(hang)
        for number in range(40):
            settings = registration_of({"name": f"s{number}", "to": hanging.url, "probe": FAST}, [])
            assert settings is not None
            service = registry.manager.services.register(settings)[0]
            registry.manager._probes.watch(service)
        await until(lambda: hanging.connections == 32)
        assert len(registry.manager._probes._waiting) == 8
        over.set()
        await until(lambda: hanging.connections > 40)
        await registry.close()

    play(work)
