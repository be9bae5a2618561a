"""Endpoints: what to connect to for a URL or a server."""

from __future__ import annotations

import os

import pytest

from poolctl.features.gateway.program import (
    MIN_VERSION,
    program_path,
    program_version,
)
from poolctl.features.gateway.settings import (
    Endpoint,
    GatewaySettings,
    ListenerSettings,
    settings_of,
)
from poolctl.features.gateway.table import GatewayConfig
from poolctl.json_form import from_json, to_json


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://10.0.0.7:9000", Endpoint("tcp", "10.0.0.7", 9000)),
        ("http://shop.example", Endpoint("tcp", "shop.example", 80)),
        ("https://shop.example", Endpoint("tcp", "shop.example", 443, tls=True, server_name="shop.example")),
        ("https://[::1]:8443", Endpoint("tcp", "::1", 8443, tls=True, server_name="::1")),
        ("h2c://10.0.0.7:50051", Endpoint("tcp", "10.0.0.7", 50051, h2=True)),
        ("https+h2://a.b", Endpoint("tcp", "a.b", 443, tls=True, server_name="a.b", h2=True)),
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


def test_settings_have_the_program_and_user_for_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = program_path(None)
    table = GatewayConfig(user="root", trusted_proxies=("10.0.0.0/8", "unix"))
    found = settings_of(table)
    assert found == GatewaySettings(table, path, program_version(path) or MIN_VERSION, "root")
    assert found.trusted_proxies == ("10.0.0.0/8", "unix")
    assert settings_of(GatewayConfig(program="/opt/haproxy")).program == "/opt/haproxy"


def test_listener_that_a_previous_version_stored_has_the_usual_values() -> None:
    given = {"bind": "127.0.0.1:80"}
    others = {
        "protocol": "http",
        "alias": "",
        "tls": False,
        "accept_proxy": False,
        "mode": "",
    }
    assert to_json(from_json(ListenerSettings, given)) == {**given, **others}


def test_endpoint_of_a_server_that_does_not_listen_leads_nowhere() -> None:
    assert tuple(Endpoint("none")) == ("none", "", 0, "", False, "", False)
