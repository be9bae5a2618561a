"""Endpoints: what to connect to for a URL or a server."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl import __version__
from poolctl.features.gateway.process.settings import (
    UDP,
    Endpoint,
    GatewaySettings,
    ListenerSettings,
    MachineState,
    ProbeState,
    ServerFacts,
)
from poolctl.features.gateway.supervision.gateway_plan import settings_of
from poolctl.features.gateway.table import GatewayConfig
from poolctl.json_form import Table, from_json, to_json


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://10.0.0.7:9000", Endpoint("tcp", "10.0.0.7", 9000)),
        ("http://shop.example", Endpoint("tcp", "shop.example", 80)),
        ("https://shop.example", Endpoint("tcp", "shop.example", 443, tls=True, server_name="shop.example")),
        ("https://[::1]:8443", Endpoint("tcp", "::1", 8443, tls=True, server_name="::1")),
        ("unix:/run/a.sock", Endpoint("unix", path="/run/a.sock")),
        ("10.0.0.5:5432", Endpoint("tcp", "10.0.0.5", 5432)),
        ("[::1]:53", Endpoint("tcp", "::1", 53)),
    ],
)
def test_url_names_an_endpoint(url: str, endpoint: Endpoint) -> None:
    assert Endpoint.of_url(url) == endpoint


@pytest.mark.parametrize("url", ["", "shop.example", "http://", "http://a:99999", "ftp://a"])
def test_url_without_host_or_port_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"host and port|Port out of range"):
        Endpoint.of_url(url)


@pytest.mark.parametrize(
    ("bind", "endpoint"),
    [
        ("127.0.0.1:8080", Endpoint("tcp", "127.0.0.1", 8080)),
        ("0.0.0.0:8080", Endpoint("tcp", "127.0.0.1", 8080)),
        ("[::]:8080", Endpoint("tcp", "::1", 8080)),
        ("unix:/run/a.sock", Endpoint("unix", path="/run/a.sock")),
    ],
)
def test_server_is_reached_on_this_machine(bind: str, endpoint: Endpoint) -> None:
    assert Endpoint.of_server(bind, tls=False) == endpoint
    assert Endpoint.of_server(bind, tls=True).tls


def test_other_program_or_version_needs_another_process() -> None:
    own = GatewaySettings(directory="/")
    assert own.mark == __version__
    assert GatewaySettings(directory="/x", head_seconds=1.0).mark == own.mark
    assert (
        GatewaySettings(directory="/", program="/usr/sbin/haproxy").mark == f"{__version__} /usr/sbin/haproxy"
    )


def test_listeners_of_two_protocols_have_different_keys() -> None:
    tcp, udp = ListenerSettings(bind="a:53", alias="dns"), ListenerSettings(bind="a:53", protocol=UDP)
    assert (tcp.key, udp.key) == ("a:53", "udp a:53")
    assert (tcp.role, udp.role) == (("http", "dns"), (UDP, ""))


def test_process_has_the_same_defaults_as_the_table() -> None:
    assert settings_of(GatewayConfig()) == GatewaySettings(directory="")


@pytest.mark.parametrize(
    ("kind", "given", "others"),
    [
        (
            ListenerSettings,
            {"bind": "127.0.0.1:80"},
            {"sockets": 1, "protocol": "http", "alias": "", "tls": False, "dual": False, "accept_proxy": False},
        ),
        (
            ServerFacts,
            {"name": "web"},
            {
                "bind": "", "tls": False, "state": "stopped", "ready": False, "health": "unknown", "weight": 1,
                "canary": "", "canary_bind": "", "canary_share": 0.0, "context_key": "", "is_app": False,
            },
        ),
        (
            MachineState,
            {"host": "http://10.0.0.7:80"},
            {"state": "", "why": "", "retry_seconds": 0.0, "start_seconds": 60.0, "answers": 0},
        ),
        (ProbeState, {"host": "http://10.0.0.7:80"}, {"why": "", "answered": False}),
    ],
)  # fmt: skip
def test_fact_that_is_not_reported_is_the_usual_one(kind: Any, given: Table, others: Table) -> None:
    assert to_json(from_json(kind, given)) == {**given, **others}


def test_endpoint_of_a_server_that_does_not_listen_leads_nowhere() -> None:
    assert tuple(Endpoint("none")) == ("none", "", 0, "", False, "")
