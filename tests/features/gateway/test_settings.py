"""Endpoints: what to connect to for a URL or a server."""

from __future__ import annotations

import pytest

from poolctl import __version__
from poolctl.features.gateway.process.settings import UDP, Endpoint, GatewaySettings, ListenerSettings


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
