"""The route table in force: computed from the newest configuration, and published when it differs."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import MASK, ServerConfig, Tables
from poolctl.features.gateway.supervision.route_tables import RouteTableManager
from poolctl.features.gateway.table import GatewayConfig, RouteConfig, StreamConfig
from poolctl.keeper.pool_files import CONTEXT_SECRET
from poolctl.routing.registry import TableRegistry
from poolctl.routing.route_table import RouteTable
from tests.descriptors import free_descriptors, no_descriptor_left
from tests.temporary_directory import temporary_directory


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def source(*names: str, route: str = "web", user: str = "root") -> tuple[Sequence[ServerConfig], Tables]:
    """Servers of root's, of which the last one has this user."""
    servers = [
        ServerConfig(
            name=name,
            bind=f"127.0.0.1:{8000 + n}",
            app="a:b",
            user=user if name == names[-1] else "root",
        )
        for n, name in enumerate(names)
    ]
    return servers, Tables(gateway=GatewayConfig(), route=(RouteConfig(to=(route,), alias="first"),))


def schedule(routes: RouteTableManager, newest: Callable[[], tuple[Sequence[ServerConfig], Tables]]) -> None:
    """Have the routes computed from this source."""
    routes.source = newest
    routes.schedule_computation()


class Publisher:
    def __init__(self, path: str = "") -> None:
        self.generations: list[int] = []
        self.path = path or temporary_directory(self)
        self.published = RouteTableManager(source, self.changed, self.path)

    def changed(self) -> None:
        self.generations.append(self.published.generation)

    async def compute(self, *names: str, route: str = "web", user: str = "root") -> None:
        schedule(self.published, lambda: source(*names, route=route, user=user))
        await self.published.wait_until_current()


@pytest.mark.loop(run=run)
async def test_table_is_published_once_for_several_changes_at_a_time_and_not_for_none() -> None:
    publisher = Publisher()
    schedule(publisher.published, lambda: source("web"))
    await publisher.compute("web", "other")
    await publisher.compute("web", "third")
    assert len(publisher.generations) == 1
    routes = publisher.published.routes
    assert ([each.alias for each in routes.http], routes.servers) == (["first"], {"web"})
    assert publisher.published.table is not None
    table = RouteTable(publisher.published.table.fileno())
    assert table.generation == publisher.generations[0]
    publisher.published.close()


@pytest.mark.loop(run=run)
async def test_generations_rise_and_begin_above_those_of_an_earlier_supervisor() -> None:
    began = time.time_ns() // 1_000_000
    publisher = Publisher()
    for route in ("web", "other", "web"):
        await publisher.compute("web", "other", route=route)
    assert publisher.generations == sorted(set(publisher.generations))
    assert (len(publisher.generations), publisher.generations[0] >= began) == (3, True)
    publisher.published.close()


@pytest.mark.loop(run=run)
async def test_route_without_its_server_is_excluded_and_the_table_stays_until_there_is_another() -> None:
    publisher = Publisher()
    await publisher.compute("web")
    before = publisher.published.generation

    def broken() -> tuple[Sequence[ServerConfig], Tables]:
        raise RuntimeError("a flaw")

    schedule(publisher.published, broken)
    await publisher.published.wait_until_current()
    assert publisher.published.generation == before
    assert "a flaw" in publisher.published.problem
    await publisher.compute("other")
    (excluded,) = publisher.published.routes.excluded
    assert (excluded.alias, publisher.published.problem) == ("first", "")
    publisher.published.close()


@pytest.mark.loop(run=run)
async def test_table_that_cannot_be_written_leaves_the_one_before_and_no_descriptor() -> None:
    publisher = Publisher()
    await publisher.compute("web", "other", user="nobody")
    before = publisher.published.table
    with no_descriptor_left(), free_descriptors(1):  # there is one more table
        await publisher.compute("web", "other", route="other", user="nobody")
    problem = "its route table cannot be made: [Errno 24] Too many open files"
    assert (publisher.published.problem, publisher.published.table) == (problem, before)
    publisher.published.close()


@pytest.mark.loop(run=run)
async def test_changes_without_an_end_do_not_delay_those_that_came_before() -> None:
    publisher = Publisher()
    names = itertools.cycle(("web", "other"))

    def change() -> None:
        route = next(names)
        schedule(publisher.published, lambda: source("web", "other", route=route))

    publisher.published = RouteTableManager(source, change, publisher.path)
    change()
    for _ in range(3):
        before = publisher.published.generation
        await publisher.published.wait_until_current()
        assert publisher.published.generation > before
    publisher.published.close()


@pytest.mark.loop(run=run)
async def test_masked_table_has_streams_and_excluded_routes_and_no_value_of_a_header() -> None:
    secret = RouteConfig(
        to=("web",),
        alias="first",
        add_headers={"Authorization": "Bearer 123", "X-Add": "1"},
        headers={"X-Token": "abc", "X-Version": "2", "X-Any-Token": ""},
    )
    plain = RouteConfig(to=("web",), alias="plain", path="/plain")
    gone = RouteConfig(to=("gone",), alias="gone")
    stream = StreamConfig(alias="db", bind="127.0.0.1:5432", to=("10.0.0.5:5432",))

    async def masked_of(routes: RouteTableManager, *given: RouteConfig) -> TableRegistry:
        tables = Tables(gateway=GatewayConfig(), route=given, stream=(stream,))
        schedule(routes, lambda: (source("web")[0], tables))
        await routes.wait_until_current()
        assert routes.table is not None
        table = RouteTable(routes.table.fileno())
        return TableRegistry(lambda: table)

    routes = Publisher().published
    assert routes.table is None
    registry = await masked_of(routes, secret, plain, gone)
    first = registry.http.get("first")
    assert first is not None
    assert {each.name: each.value for each in first.add_headers} == {"authorization": MASK, "x-add": MASK}
    conditions = {each.name: each.value for each in first.headers}
    assert conditions == {"x-token": MASK, "x-version": "2", "x-any-token": ""}
    assert registry.http.get("plain") == next(each for each in routes.routes.http if each.alias == "plain")
    assert ([*registry.stream], [*registry.excluded]) == (
        [*routes.routes.streams],
        [*routes.routes.excluded],
    )
    assert (registry.num_all, registry.generation) == (4, routes.generation)
    generations: list[int] = []
    with routes.subscribed(generations.append):
        await masked_of(routes, plain)
        assert generations == [routes.generation]
    routes.close()


def shown(routes: RouteTableManager) -> dict[str, list[str]]:
    """The routes that the workers of each server know."""
    found = {}
    for name, descriptor in routes.worker_tables.items():
        table = RouteTable(descriptor.fileno())
        assert table.generation == routes.generation
        found[name] = sorted(each.alias for each in table)
    return found


@pytest.mark.loop(run=run)
async def test_each_user_has_a_table_and_each_server_a_key_of_its_own(tmp_path: Path) -> None:
    publisher = Publisher(str(tmp_path))
    routes = publisher.published
    targets = ("web", "other", "third", "http://10.0.0.7:90")
    tables = Tables(
        gateway=GatewayConfig(),
        route=tuple(RouteConfig(to=(to,), path=f"/{to[:5]}", alias=to[:5]) for to in targets),
    )
    schedule(routes, lambda: (source("web", "third", "other", user="nobody")[0], tables))
    await routes.wait_until_current()
    assert routes.routes.users == (("other", "nobody"), ("third", "root"), ("web", "root"))
    of_workers = routes.worker_tables
    assert {*of_workers} == {"web", "other", "third"}
    assert of_workers["web"] is of_workers["third"]
    assert len({each.fileno() for each in of_workers.values()}) == 2
    root, nobody = ["third", "web"], ["other"]
    assert shown(routes) == {"web": root, "third": root, "other": nobody}
    keys = dict(routes.context_keys)
    assert {*keys} == {"web", "other", "third"}
    assert len({*keys.values()}) == 3
    assert {len(each) for each in keys.values()} == {32}
    secret = (tmp_path / CONTEXT_SECRET).read_bytes()
    assert len(secret) == 32
    # Another user of a server has another key; a successor has the same ones.
    await publisher.compute("web", "other", "third")
    assert routes.context_keys["web"] == keys["web"]
    routes.close()
    assert {each.fileno() for each in of_workers.values()} == {-1}
    successor = Publisher(str(tmp_path)).published
    schedule(successor, lambda: (source("web", "third", "other", user="root")[0], tables))
    await successor.wait_until_current()
    assert (tmp_path / CONTEXT_SECRET).read_bytes() == secret
    assert shown(successor) == {name: ["other", "third", "web"] for name in keys}
    found = successor.context_keys
    assert (found["web"], found["third"]) == (keys["web"], keys["third"])
    assert found["other"] != keys["other"]
    assert (successor.has("other"), successor.has("gone")) == (True, False)
    successor.close()


@pytest.mark.loop(run=run)
async def test_secret_that_is_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / CONTEXT_SECRET).write_bytes(b"x" * 31)
    publisher = Publisher(str(tmp_path))
    await publisher.compute("web")
    assert len((tmp_path / CONTEXT_SECRET).read_bytes()) == 32
    publisher.published.close()
