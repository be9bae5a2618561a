"""The gateway's listeners: another address takes the place of one only when it can be opened."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

from poolctl.config import Tables
from poolctl.features.gateway.process.settings import TCP, ListenerSettings
from poolctl.features.gateway.supervision.gateway_plan import (
    Certificate,
    GatewayListeners,
    GatewayPlan,
    plan_of,
)
from poolctl.features.gateway.table import GatewayConfig
from poolctl.routing.route import StreamRoute, Target
from tests.ports import claim_port
from tests.unit.core.ordered_core import run


class Store:
    """A keeper that keeps nothing but the names of what it was given."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def send(self, message: dict[str, Any], fds: object = ()) -> None:
        self.names.add(message["name"])

    async def call(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        self.names.discard(message["name"])
        return {}, []


def http(bind: str, *, tls: bool = False) -> ListenerSettings:
    return ListenerSettings(bind=bind, tls=tls)


def by_key(*listeners: ListenerSettings) -> dict[str, ListenerSettings]:
    return {each.key: each for each in listeners}


def plan(*listeners: ListenerSettings, **more: Any) -> GatewayPlan:
    settings: Any = None
    return GatewayPlan(settings, by_key(*listeners), more.get("streams", {}), more.get("certificates", ()))


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_wider_address_on_the_same_port_takes_the_place_of_a_narrower_one_at_once() -> None:
    async def scenario() -> None:
        port = claim_port()
        narrow, wide = http(f"127.0.0.1:{port}"), http(f"0.0.0.0:{port}")
        store: Any = Store()
        listeners = GatewayListeners(store)
        for wanted in (narrow, wide, narrow):
            assert await listeners.open(by_key(wanted)) == []
            assert listeners.settings == by_key(wanted)
            assert store.names == {f"gateway listener {wanted.key}"}
            assert is_open(port)
        await listeners.close_others(())
        assert not is_open(port)

    run(scenario())


def test_address_without_a_host_is_open_for_both_families() -> None:
    tables = Tables(gateway=GatewayConfig(bind=(":8080", "0.0.0.0:8081")))
    found = plan_of(tables, (), "/run", "/state", {}, {})
    assert found is not None
    assert {each.bind: each.dual for each in found.listeners.values()} == {
        "0.0.0.0:8080": True, "0.0.0.0:8081": False,
    }  # fmt: skip

    async def scenario() -> None:
        listeners, port = GatewayListeners(Store()), claim_port()
        narrow = http(f"0.0.0.0:{port}")
        for wanted in (replace(narrow, dual=True), narrow, replace(narrow, dual=True)):
            assert await listeners.open(by_key(wanted)) == []
            families = {each.family for each in listeners.of(wanted.key)}
            assert families == ({socket.AF_INET, socket.AF_INET6} if wanted.dual else {socket.AF_INET})
        await listeners.close_others(())

    run(scenario())


def test_narrower_address_comes_back_when_the_wider_one_cannot_be_opened() -> None:
    async def scenario() -> None:
        port = claim_port()
        narrow, wide = http(f"127.0.0.1:{port}"), http(f"0.0.0.0:{port}")
        store: Any = Store()
        listeners = GatewayListeners(store)
        assert await listeners.open(by_key(narrow)) == []
        with socket.create_server(("127.0.0.2", port)):
            (error,) = await listeners.open(by_key(wide))
        assert error.bind == wide.bind
        assert f"port {port} is in use" in error.message
        assert listeners.settings == by_key(narrow)
        assert is_open(port)
        await listeners.close_others(())

    run(scenario())


def test_plan_keeps_an_address_until_the_one_that_takes_its_place_is_open() -> None:
    old, new, other = http("127.0.0.1:1", tls=True), http("127.0.0.1:2", tls=True), http("127.0.0.1:3")
    certificate = Certificate(new.key, (), {}, (), "")
    planned = plan(new, other, certificates=(certificate,))
    failed = planned.limited_to(by_key(old, other))
    assert set(failed.listeners) == {old.key, other.key}
    assert [each.bind for each in failed.certificates] == [new.key, old.key]
    assert set(planned.limited_to(by_key(old, new, other)).listeners) == {new.key, other.key}


def test_plan_keeps_the_former_address_of_the_same_stream_only() -> None:
    route = StreamRoute(alias="db", bind="127.0.0.1:2", to=(Target(url="127.0.0.1:9"),))
    old = ListenerSettings(bind="127.0.0.1:1", protocol=TCP, alias="db")
    new = ListenerSettings(bind="127.0.0.1:2", protocol=TCP, alias="db")
    gone = ListenerSettings(bind="127.0.0.1:3", protocol=TCP, alias="gone")
    found = plan(new, streams={new.key: route}).limited_to(by_key(old, gone, http("127.0.0.1:4")))
    assert set(found.listeners) == {old.key}
    assert found.streams[old.key] is route
