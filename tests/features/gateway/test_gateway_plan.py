"""The gateway's listeners: another address takes the place of one only when it can be opened."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from poolctl import TLSConfig
from poolctl.config import Tables
from poolctl.errors import ServerError
from poolctl.features.gateway.haproxy.setup import Certificate
from poolctl.features.gateway.settings import ListenerSettings
from poolctl.features.gateway.supervision.listeners import (
    GatewayListeners,
    GatewayPlan,
    plan_of,
)
from poolctl.features.gateway.table import GatewayConfig, GatewayListener, StreamConfig
from poolctl.routing.route import StreamRoute, Target
from poolctl.runners.listener_opener import Opener
from tests.certificates import certificate
from tests.ports import claim_port


class Store:
    """A keeper that keeps nothing."""

    def send(self, message: dict[str, Any], fds: Iterable[socket.socket] = ()) -> None: ...

    async def call(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        return {}, []


def http(bind: str, *, tls: bool = False) -> ListenerSettings:
    return ListenerSettings(bind=bind, tls=tls)


def by_key(*listeners: ListenerSettings) -> dict[str, ListenerSettings]:
    return {each.bind: each for each in listeners}


def plan(*listeners: ListenerSettings, **more: Any) -> GatewayPlan:
    settings: Any = None
    return GatewayPlan(settings, by_key(*listeners), **more)


def accepting(listeners: GatewayListeners, port: int, host: str = "127.0.0.1") -> list[str]:
    """The listeners that get a connection to this address."""
    with socket.socket() as client:
        client.connect_ex((host, port))
        found = []
        for key in listeners.settings:
            for sock in listeners.of(key):
                with contextlib.suppress(OSError):
                    sock.accept()[0].close()
                    found.append(key)
        return found


def listen(listeners: GatewayListeners, key: str) -> None:
    """What HAProxy does when it has accepted its file."""
    for sock in listeners.of(key):
        sock.listen()


async def test_socket_whose_owner_does_not_exist_is_not_opened_but_an_open_one_stays(tmp_path: Path) -> None:
    listeners, path = GatewayListeners(Store(), Opener()), tmp_path / "g.sock"
    for owner, is_open in (("no-such-user", False), (None, True), ("no-such-user", True)):
        bind = ({"bind": f"unix:{path}", "owner": owner},)
        found = plan_of(Tables(gateway=GatewayConfig(bind=bind)), [], {})
        assert found is not None
        problems = await listeners.open_missing(found.listeners)
        messages = [each.message for each in problems]
        missing = "there is no user or group 'no-such-user' that its socket could belong to"
        assert messages == ([] if owner is None else [missing])
        assert bool(listeners.of(f"unix:{path}")) == path.exists() == is_open
    await listeners.close_others(())


async def test_address_without_a_host_is_open_for_both_families() -> None:
    listeners, port = GatewayListeners(Store(), Opener()), claim_port()
    tables = Tables(gateway=GatewayConfig(bind=(f":{port}",)))
    found = plan_of(tables, (), {})
    assert found is not None
    assert await listeners.open_missing(found.listeners) == []
    assert {each.family for each in listeners.of(f":{port}")} == {socket.AF_INET, socket.AF_INET6}
    await listeners.close_others(())


async def test_narrower_address_stays_open_when_the_wider_one_cannot_be_opened() -> None:
    port = claim_port()
    narrow, wide = http(f"127.0.0.1:{port}"), http(f"0.0.0.0:{port}")
    store: Any = Store()
    listeners = GatewayListeners(store, Opener())
    assert await listeners.open_missing(by_key(narrow)) == []
    with socket.create_server(("127.0.0.2", port)):
        (error,) = await listeners.open_missing(by_key(wide))
    assert error.bind == wide.bind
    assert f"port {port} is in use" in error.message
    listen(listeners, narrow.bind)
    assert accepting(listeners, port) == [narrow.bind]
    await listeners.close_others(())


def test_plan_keeps_an_address_until_the_one_that_takes_its_place_is_open() -> None:
    old, new, other = http("127.0.0.1:1", tls=True), http("127.0.0.1:2", tls=True), http("127.0.0.1:3")
    certificates = {each.bind: [Certificate(TLSConfig(cert=each.bind), (), ())] for each in (new, other)}
    planned = plan(new, other, certificates=certificates)
    failed = planned.limited_to(by_key(old, other))
    assert set(failed.listeners) == {old.bind, other.bind}
    assert failed.certificates == {**certificates, old.bind: certificates[new.bind]}
    assert set(planned.limited_to(by_key(old, new, other)).listeners) == {new.bind, other.bind}


def test_plan_keeps_the_former_address_of_the_same_stream_only() -> None:
    route = StreamRoute(alias="db", bind="127.0.0.1:2", to=(Target(url="127.0.0.1:9"),))
    old = ListenerSettings(bind="127.0.0.1:1", protocol="tcp", alias="db")
    new = ListenerSettings(bind="127.0.0.1:2", protocol="tcp", alias="db")
    gone = ListenerSettings(bind="127.0.0.1:3", protocol="tcp", alias="gone")
    found = plan(new, streams={new.bind: route}).limited_to(by_key(old, gone, http("127.0.0.1:4")))
    assert set(found.listeners) == {old.bind}
    assert found.streams[old.bind] is route


def test_plan_has_a_listener_for_each_address_and_stream() -> None:
    web = GatewayListener(bind="127.0.0.1:8080", accept_proxy_protocol=True)
    tables = Tables(
        gateway=GatewayConfig(bind=(web, GatewayListener(bind=":8443"))),
        stream=(StreamConfig(bind=":5432", to=("10.0.0.5:5432",)),),
    )
    db = StreamRoute(alias="db", bind=":5432", to=(Target(url="10.0.0.5:5432"),), accept_proxy=True)
    web_port = StreamRoute(alias="web", bind="127.0.0.1:53", to=(Target(server="web"),), protocol="http")
    found = plan_of(tables, (db, web_port), {})
    assert found is not None
    listeners = (
        ListenerSettings(bind="127.0.0.1:8080", accept_proxy=True),
        ListenerSettings(bind=":8443"),
        ListenerSettings(bind=":5432", protocol="tcp", alias="db", accept_proxy=True),
        ListenerSettings(bind="127.0.0.1:53", protocol="http", alias="web"),
    )
    assert found.listeners == by_key(*listeners)
    assert found.streams == {listeners[2].bind: db, listeners[3].bind: web_port}
    assert found.certificates == {}
    assert plan_of(Tables(), (), {}) is None


def test_plan_has_the_contents_of_certificates(tmp_path: Path) -> None:
    first, second = certificate(tmp_path, "a.example"), certificate(tmp_path, "b.example")
    both = tmp_path / "both.pem"
    both.write_bytes(second[0].read_bytes() + second[1].read_bytes())
    tls = (
        TLSConfig(cert=str(first[0]), key=str(first[1])),
        TLSConfig(cert=str(both), ca=str(first[0]), client_auth="required", min_version="1.3", ciphers="AES"),
    )
    tables = Tables(gateway=GatewayConfig(bind=(GatewayListener(bind="127.0.0.1:8443", tls=tls),)))

    def made() -> GatewayPlan:
        found = plan_of(tables, (), {})
        assert found is not None
        return found

    key, found = "127.0.0.1:8443", made()
    assert found.listeners[key].tls
    contents = first[0].read_bytes(), first[1].read_bytes(), both.read_bytes()
    assert found.certificates[key] == [
        Certificate(tls[0], ("a.example", "127.0.0.1"), [*contents[:2]]),
        Certificate(tls[1], ("b.example", "127.0.0.1"), [contents[2], contents[2], contents[0]]),
    ]
    first[1].unlink()
    with pytest.raises(ServerError, match=f"cannot read {first[1]}: No such file or directory") as failed:
        made()
    assert failed.value.hint == "check `tls` of [gateway]"


async def test_open_listener_whose_settings_change_keeps_its_sockets() -> None:
    listeners, plain = GatewayListeners(Store(), Opener()), http(f"127.0.0.1:{claim_port()}")
    assert await listeners.open_missing(by_key(plain)) == []
    sockets, secure = listeners.of(plain.bind), http(plain.bind, tls=True)
    assert await listeners.open_missing(by_key(secure)) == []
    assert (listeners.settings, listeners.of(plain.bind)) == (by_key(secure), sockets)
    await listeners.close_others(())
