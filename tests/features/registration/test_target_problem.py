"""Where no service can be registered."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from poolctl.config import Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.features.gateway.table import GatewayConfig, StreamConfig
from poolctl.features.registration._service_routes import registration_of
from poolctl.features.registration._target_problem import target_problem
from poolctl.features.registration.table import RegistrationTable

TABLES = Tables(
    gateway=GatewayConfig(bind=(":8080", "10.0.0.7:8443", "[::1]:8444")),  # type: ignore[arg-type]
    metrics=MetricsTable(bind="127.0.0.1:9464"),
    registration=RegistrationTable(bind="0.0.0.0:8014", client=()),
    streams=(StreamConfig(alias="db", bind="127.0.0.1:5432", to=("10.0.0.5:1",)),),  # type: ignore[arg-type]
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
        ("http://224.0.0.1:9000", "is no address of a service"),
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


def test_every_address_of_this_machine_reaches_a_wildcard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # which sends nothing
        except OSError:
            pytest.skip("this machine has no address besides loopback")
        own = probe.getsockname()[0]
    assert GATEWAY in problem(f"http://{own}:8080")


def test_sockets_of_poolctl_are_refused_by_whatever_name(tmp_path: Path) -> None:
    pool = tmp_path / "0123456789ab"
    pool.mkdir()
    with socket.socket(socket.AF_UNIX) as control, socket.socket(socket.AF_UNIX) as gateway:
        control.bind(os.fspath(pool / "control.sock"))
        gateway.bind(os.fspath(tmp_path / "gateway.sock"))
        (tmp_path / "link.sock").symlink_to(pool / "control.sock")
        os.link(tmp_path / "gateway.sock", tmp_path / "other.sock")
        tables = Tables(gateway=GatewayConfig(bind=(f"unix:{tmp_path}/gateway.sock",)))  # type: ignore[arg-type]
        for path in ("0123456789ab/control.sock", "0123456789ab/../link.sock", "0123456789ab/keeper.sock"):
            assert "is a socket of poolctl's own" in problem(f"unix:{tmp_path}/{path}", tables)
        for path in ("gateway.sock", "other.sock"):
            assert GATEWAY in problem(f"unix:{tmp_path}/{path}", tables)
        assert problem(f"unix:{tmp_path}/app.sock", tables) == ""
