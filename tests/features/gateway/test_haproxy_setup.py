"""What HAProxy runs with, and the commands that change a running one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from poolctl.config import TLSConfig
from poolctl.features.gateway.haproxy.configuration import (
    ProcessPlaces,
    ServerAddresses,
    configuration_of,
)
from poolctl.features.gateway.haproxy.listeners import HaproxyCertificate, HaproxyListener
from poolctl.features.gateway.haproxy.setup import (
    Certificate,
    HaproxySetup,
    HeldListener,
    ServerState,
    SetupParts,
    change,
    host_names,
    parts_of,
)
from poolctl.features.gateway.settings import Endpoint, ListenerSettings
from poolctl.features.gateway.target import TargetState
from poolctl.routing.route import Route, StreamRoute, Target, TrafficLimits
from tests.features.gateway.scripted_haproxy import FiguresStage, gateway_settings, server

ONE, TWO = Target(server="one"), Target(server="two")


POOL = "pool-purge-delay 125ms sni var(txn.once)"
PORTS = {"one": 8081, "two": 8082}


def setup(
    *targets: Target,
    states: dict[str, str] | None = None,
    hosts: dict[str, str] | None = None,
    certificate: bytes = b"A",
    **rules: Any,
) -> HaproxySetup:
    """Of one route "r" with these targets; all of its servers are ready but for those with other states."""
    endpoints = {
        name: Endpoint("tcp", (hosts or {}).get(name, "127.0.0.1"), port) for name, port in PORTS.items()
    }
    if "unix" in (hosts or {}):
        endpoints["one"] = Endpoint("unix", path="/run/one.sock")
    parts = SetupParts(
        gateway_settings(), (HaproxyListener(("fd@5",)),), (Route(alias="r", to=targets, **rules),), (),
        ServerAddresses(endpoints), {}, {}, {"c.pem": certificate}, (), "abns@next", "KEY",
    )  # fmt: skip
    made = parts.build()
    names = [server.name for section in made.configuration.backends for server in section.servers]
    return made._replace(
        states={("route:r", name): ServerState((states or {}).get(name, "ready")) for name in names}
    )


def with_map(made: HaproxySetup, **entries: str) -> HaproxySetup:
    """The setup with a map of these entries."""
    maps = {**made.maps, "m.map": entries}
    return made._replace(configuration=made.configuration._replace(maps=maps))


def state(name: str, state: str) -> str:
    """The command that sets the server's state, after the one that sets its limit."""
    return f"set server route:r/{name} state {state}"


def without_limits(commands: list[str]) -> list[str]:
    return [each for each in commands if not each.startswith("set maxconn server ")]


URL = Target(url="http://10.0.0.7:9000")


@pytest.mark.parametrize(
    ("before", "after", "commands"),
    [
        (setup(ONE), setup(ONE), []),
        (
            with_map(setup(ONE), a="1", b="2"),
            with_map(setup(ONE), a="1", b="3"),
            ["set map m.map b 3"],
        ),
        (setup(ONE), setup(ONE, states={"one": "maint"}), [state("one", "maint")]),
        (
            setup(ONE, states={"one": "drain"}),
            setup(ONE),
            [state("one", "ready")],
        ),
        (
            setup(ONE),
            setup(ONE, hosts={"one": "10.0.0.1"}),
            ["set server route:r/one addr 10.0.0.1 port 8081"],
        ),
        (setup(ONE), setup(ONE, hosts={"one": "::1"}), ["set server route:r/one addr ::1 port 8081"]),
        (
            setup(ONE, TWO),
            setup(ONE, replace(TWO, weight=3)),
            ["set server route:r/two weight 3"],
        ),
        (
            setup(ONE),
            setup(ONE, TWO),
            [f"add server route:r/two 127.0.0.1:8082 {POOL}", state("two", "ready")],
        ),
        (
            setup(ONE),
            setup(ONE, URL),
            [
                f"add server route:r/10.0.0.7:9000 10.0.0.7:9000 {POOL}",
                state("10.0.0.7:9000", "ready"),
            ],
        ),
        (
            setup(ONE, TWO),
            setup(TWO),
            ["set server route:r/one state maint"],
        ),
        (
            setup(ONE),
            setup(TWO),
            [
                f"add server route:r/two 127.0.0.1:8082 {POOL}",
                state("two", "ready"),
                "set server route:r/one state maint",
            ],
        ),
        (
            setup(ONE, TWO, states={"two": "maint"}),
            setup(ONE, TWO, states={"one": "maint"}),
            [state("two", "ready"), state("one", "maint")],
        ),
        (
            setup(ONE),
            setup(ONE, TWO, states={"two": "maint"}),
            [f"add server route:r/two 127.0.0.1:8082 {POOL}"],
        ),
        (
            setup(ONE, states={"one": "maint"}),
            setup(ONE, replace(TWO, weight=2), states={"one": "drain", "two": "drain"}),
            [
                f"add server route:r/two 127.0.0.1:8082 {POOL} weight 2",
                state("one", "drain"),
                state("two", "drain"),
            ],
        ),
        (
            setup(ONE, TWO),
            setup(
                replace(ONE, weight=2), replace(TWO, weight=3), hosts={"one": "10.0.0.1", "two": "10.0.0.2"}
            ),
            [
                "set server route:r/one weight 2",
                "set server route:r/one addr 10.0.0.1 port 8081",
                "set server route:r/two weight 3",
                "set server route:r/two addr 10.0.0.2 port 8082",
            ],
        ),
    ],
)
def test_change_of_members_is_made_by_commands(
    before: HaproxySetup, after: HaproxySetup, commands: list[str]
) -> None:
    changed = change(before, after)
    assert changed is not None
    assert without_limits(changed[0]) == commands


def test_server_that_is_used_no_more_rests_and_many_of_them_need_another_start() -> None:
    both, one = setup(ONE, TWO), setup(ONE)
    rested = change(both, one)
    assert rested is not None
    assert [*rested[1].left] == [("route:r", "two")]
    back = change(rested[1], both)
    assert back == (["set maxconn server route:r/two 0", state("two", "ready")], both)
    moved = change(rested[1], setup(ONE, TWO, hosts={"two": "10.0.0.2"}))
    assert moved is not None
    assert moved[0][0] == "set server route:r/two addr 10.0.0.2 port 8082"
    (two,) = rested[1].left.values()
    many = {("route:r", str(number)): two for number in range(100)}
    assert change(one._replace(left=many), one) is not None
    assert change(both._replace(left=many), one) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (setup(ONE), setup(ONE, path="/v1", strip_path=True)),
        (setup(ONE), setup(ONE, methods=("GET",))),
        (setup(ONE), setup(ONE, host="a.example")),
        (setup(ONE), setup(ONE, policy="least-connections")),
        (setup(ONE), setup(ONE, hosts={"unix": ""})),
        (setup(ONE, sticky_cookie="c"), setup(ONE, TWO, sticky_cookie="c")),
        (setup(ONE, policy="first"), setup(ONE, TWO, policy="first")),
        (setup(ONE, TWO, policy="first"), setup(ONE, policy="first")),
        (setup(ONE, hosts={"unix": ""}), setup(ONE)),
        (setup(URL), setup(URL, backend_limit=TrafficLimits(concurrency=9))),
        (setup(ONE), setup(ONE, Target(url="unix:/run/a;shutdown frontend gateway"))),
        (setup(ONE), setup(ONE, certificate=b"B")),
        (setup(ONE), setup(ONE, path="/v1")),
        (setup(ONE), setup(ONE, waiting_page=True)),
    ],
)
def test_other_changes_need_another_start(before: HaproxySetup, after: HaproxySetup) -> None:
    assert change(before, after) is None


def test_start_rests_servers_that_are_not_ready_and_drains_those_that_are_to_be() -> None:
    made = setup(ONE, TWO, states={"one": "maint", "two": "drain"})
    assert f"server one 127.0.0.1:8081 {POOL} disabled" in made.text
    assert f"server two 127.0.0.1:8082 {POOL} disabled" in made.text
    assert made.start_commands() == ["set maxconn server route:r/two 0", state("two", "drain")]
    assert without_limits(made.state_commands()) == [state("one", "maint"), state("two", "drain")]


def test_servers_are_found_by_the_numbers_of_their_lines_and_can_be_left_out() -> None:
    whole = setup(ONE, TWO, URL)
    lines = whole.text.splitlines()
    found = dict(whole.configuration.servers_by_line_number())
    assert [lines[number - 1].split()[:2] for number in found] == [
        ["server", "one"], ["server", "two"], ["server", "10.0.0.7:9000"],
    ]  # fmt: skip
    two = next(server for server in found.values() if server[1].name == "two")
    assert whole.without([two]).text == setup(ONE, URL).text
    assert whole.without([]) is whole


class Held:
    """Listeners with sockets of their own, and the targets of a route and a stream, as the supervisor has them."""

    def __init__(self) -> None:
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        self.following = "abns@next", self.sockets[0], "KEY"
        self.stream = StreamRoute(alias="pg", bind="127.0.0.1:5432", to=(Target(url="10.0.0.5:5432"),))
        certificates = [
            Certificate(TLSConfig(cert="a.pem"), ("a.example",), [b"CERT\n\n", b"KEY\n"]),
            Certificate(
                TLSConfig(cert="b.pem", ca="ca", client_auth="optional", min_version="1.3", ciphers="AES"),
                (),
                [b"BOTH\n", b"BOTH\n", b"CA\n"],
            ),
        ]
        https = ListenerSettings(bind=":8443", tls=True, accept_proxy=True)
        tcp = ListenerSettings(bind="127.0.0.1:5432", protocol="tcp", alias="pg")
        self.listeners = [
            HeldListener(https, None, self.sockets[1:3], certificates),
            HeldListener(tcp, self.stream, self.sockets[3:]),
        ]
        self.routes = [Route(alias="r", to=(ONE, TWO, Target(server="gone"), URL))]
        self.stage = FiguresStage()
        self.stage.servers |= {
            "one": server(bind="127.0.0.1:8081"),
            "two": server(TargetState.SLEEPING, bind="127.0.0.1:8082", tls=True),
            "gone": server(TargetState.STOPPED, bind="no address"),
        }
        self.addresses: dict[str, str] = {}
        self.access_log: bool | str = False

    def close(self) -> None:
        for each in self.sockets:
            each.close()

    def made(self) -> HaproxySetup:
        self.stage.set_routes(*self.routes, self.stream)
        settings = gateway_settings(program="/usr/sbin/haproxy", access_log=self.access_log)
        targets = self.stage.targets
        facts = targets.facts()
        parts = parts_of(settings, self.listeners, self.routes, facts, {}, self.addresses, {}, self.following)
        return parts.build().with_states(targets.now(targets.keys))

    def states(self) -> list[str]:
        """The states of the route's servers, and of the stream's."""
        return [each.state for each in self.made().states.values()]


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.close()


def test_setup_has_the_sockets_and_certificates_of_its_listeners(held: Held) -> None:
    found = held.made()
    assert found.parts.sockets == tuple(held.sockets)
    assert found.parts.certificates == {
        "certificate-1.pem": b"CERT\nKEY\n", "certificate-2.pem": b"BOTH\n", "certificate-2.pem.ca": b"CA\n",
    }  # fmt: skip
    certificates = (
        HaproxyCertificate("certificate-1.pem", names=("a.example",)),
        HaproxyCertificate("certificate-2.pem", "certificate-2.pem.ca", "optional", "1.3", "AES"),
    )
    listeners = [
        HaproxyListener(("fd@5", "fd@6"), "", "listener-5.crt-list", certificates, accept_proxy=True),
        HaproxyListener(("fd@7",), "pg", "listener-7.crt-list"),
    ]
    endpoints = {
        "one": Endpoint("tcp", "127.0.0.1", 8081), "two": Endpoint("tcp", "127.0.0.1", 8082, tls=True), "gone": None,
    }  # fmt: skip
    settings = gateway_settings(program="/usr/sbin/haproxy")
    places = ProcessPlaces("fd@8", "fd@3", "fd@9", "fd@4", "abns@next", "KEY")
    assert found.configuration == configuration_of(
        settings, listeners, held.routes, [held.stream], ServerAddresses(endpoints), {}, places
    )
    assert found.text == found.configuration.text([("route:r", "two"), ("route:r", "gone")])


def test_servers_get_traffic_as_far_as_their_targets_are_in_use(held: Held) -> None:
    assert [*held.made().states] == [
        ("route:r", "one"), ("route:r", "two"), ("route:r", "gone"), ("route:r", "10.0.0.7:9000"),
        ("stream:pg", "10.0.0.5:5432"),
    ]  # fmt: skip
    assert held.states() == ["ready", "maint", "maint", "ready", "ready"]
    held.stage.hosts.drain("one")
    assert held.states() == ["drain", "maint", "maint", "ready", "ready"]


@pytest.mark.parametrize(
    ("state", "direct", "waiting", "page"),
    [
        (TargetState.READY, "ready", "ready", "awake"),
        (TargetState.STARTING, "maint", "ready", "starts"),
        (TargetState.SLEEPING, "maint", "ready", "asleep"),
        (TargetState.DRAINING, "drain", "maint", "awake"),
        (TargetState.DOWN, "maint", "maint", "awake"),
    ],
)
def test_connections_to_a_target_that_is_not_ready_wait(
    held: Held, state: TargetState, direct: str, waiting: str, page: str
) -> None:
    held.stage.servers["two"] = server(state, bind="127.0.0.1:8082")
    held.routes = [Route(alias="r", to=(TWO,), waiting_page=True)]
    held.stage.set_routes(*held.routes, held.stream)
    targets, addresses = held.stage.targets, {"two": "abns@waiting"}
    parts = parts_of(
        gateway_settings(), held.listeners, held.routes, targets.facts(), {}, {}, addresses, held.following
    )
    made = parts.build().with_states(targets.now(targets.keys))
    assert [made.states["route:r", name].state for name in ("two", "two:wait")] == [direct, waiting]
    assert made.maps["sleeping.map"] == {"route:r": page}


def test_server_with_a_host_name_is_reached_at_the_address_that_is_known(held: Held) -> None:
    held.routes = [
        Route(alias="r", to=(Target(url="https://a.example:8443"), Target(url="http://b.example")))
    ]
    assert host_names([each.key for each in held.routes[0].to], {}) == {"a.example": 8443, "b.example": 80}
    held.addresses = {"b.example": "fd00::1"}
    a, b, *_ = (server for section in held.made().configuration.backends for server in section.servers)
    assert (a.address, b.address) == ("ipv4@127.0.0.1:1", "ipv6@fd00::1:80")
    assert a.options.startswith("ssl verify required ")
    assert held.states()[:2] == ["maint", "ready"]
    before = held.made()
    held.addresses = {"a.example": "10.0.0.1", "b.example": "fd00::1"}
    changed = change(before, held.made())
    assert changed is not None
    assert without_limits(changed[0]) == [
        "set server route:r/a.example:8443 addr 10.0.0.1 port 8443",
        state("a.example:8443", "ready"),
    ]


def test_maps_but_that_of_routes_are_those_of_the_newest_setup_until_a_process_is_replaced() -> None:
    before, after = with_map(setup(ONE), a="1"), with_map(setup(ONE, path="/new"), a="2", b="1")
    assert before.with_states_of(after).maps == {**before.maps, "m.map": {"a": "2"}}


def test_servers_that_sleep_or_start_are_in_the_map(held: Held) -> None:
    held.routes = [Route(alias="r", to=(ONE, TWO), waiting_page=True), Route(alias="other", to=(TWO,))]
    assert (held.made().maps["sleeping.map"], held.made().shows_waiting_page) == ({"route:r": "awake"}, False)
    held.stage.servers["one"] = server(TargetState.STOPPED, bind="127.0.0.1:8081")
    made = held.made()
    assert (made.maps["sleeping.map"], made.shows_waiting_page) == ({"route:r": "asleep"}, True)
    assert made.files["sleeping.map"] == b"route:r asleep\n"
    held.stage.servers["two"] = replace(held.stage.servers["two"], target=server(TargetState.STARTING).target)
    assert (held.made().maps["sleeping.map"], held.made().shows_waiting_page) == (
        {"route:r": "starts"},
        False,
    )
