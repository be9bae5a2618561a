"""Tables that `doctor` reads: the system's, which no test can change on a shared machine, and the pool's."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolctl.config import load
from poolctl.control.answers import PingResult
from poolctl.feature import FEATURES, Feature
from poolctl.features.doctor import _check_machine, _check_pool
from poolctl.features.doctor._check import CheckContext
from tests.certificates import certificate
from tests.configuration import server
from tests.unit.cli.conftest import Command

MOUNTS = """
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:40 / /home/a\\040b rw - nfs4 server:/home rw,vers=4.2
23 22 0:41 / /home/a\\040b/local rw - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a b/pool", "nfs4"),
        ("/home/a b", "nfs4"),
        ("/home/a b/local/x", ""),
        ("/home/a bc", ""),
        ("/", ""),
    ],
)
def test_the_innermost_mount_says_whether_a_path_is_on_the_network(
    path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_check_machine, "read", lambda path: MOUNTS.strip())
    assert _check_machine._network(path) == kind


@pytest.mark.skipif("gateway" not in FEATURES, reason="there is no gateway")
def test_addresses_of_the_gateway_are_checked_like_those_of_servers(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[gateway]\nbind = [":80", "unix:edge.sock"]\n[[stream]]\nbind = ":5432"\nto = "10.0.0.5:1"\n'
        '[[stream]]\nalias = "dns"\nbind = ":53"\nto = "10.0.0.5:53"\nprotocol = "udp"\n[metrics]\n'
    )
    context = CheckContext(None, {})
    context.config = load(tmp_path / "pool.toml", {})
    assert context.config.problems == []
    assert {name: address.key for name, address in context.addresses.items()} == {
        "[metrics]": "127.0.0.1:9464",
        "[gateway]": "0.0.0.0:80",
        f"[gateway] unix:{tmp_path}/edge.sock": f"unix:{tmp_path}/edge.sock",
        "[[stream]] 10.0.0.5:1": "0.0.0.0:5432",
    }


@pytest.mark.skipif("operator" not in FEATURES, reason="there is no operator")
def test_certificates_of_tables_that_expire_soon_are_reported(tmp_path: Path) -> None:
    certificate(tmp_path, days=3)
    pair = 'cert = "localhost.pem", key = "localhost.key"'
    (tmp_path / "pool.toml").write_text(
        f'[gateway]\nbind = [{{ bind = ":8443", tls = [{{ {pair} }}] }}]\n'
        f'[operator]\nbind = ":9443"\ntls = {{ {pair} }}\ntrusted = ["127.0.0.1"]\n'
    )
    context = CheckContext(None, {})
    context.config = load(tmp_path / "pool.toml", {})
    assert (context.config.problems, context.config.outside()) == ([], [])
    found = [(each.status, each.message) for each in _check_pool.certificates(context)]
    assert [status for status, _ in found] == ["warning", "warning"]
    for table, (_, message) in zip(("[gateway]", "[operator]"), found, strict=True):
        assert message.startswith(f"{table}: ")
        assert "the certificate expires on" in message


def test_each_table_that_is_not_served_is_a_problem_with_its_fix() -> None:
    context = CheckContext(None, {})
    problems = (
        "[gateway]: its process has ended 3 times within 10m",
        "[gateway]: cannot read edge.pem: No such file or directory",
        "[gateway]: uvloop is not installed; pip install 'poolctl[gateway]'",
        "[metrics]: port 9464 is in use",
        "[events]: 3 events could not be written to /full: No space left on device",
        "[operator]: tls.key: /key.pem: there is no such file",
        "[operator]: it has no token: the environment variable TOKEN is empty",
    )
    context.about = PingResult(
        name="shop", files=(), version="1", protocol=1, python="3.11", supervisor_pid=1, keeper_pid=2,
        not_served=problems,
    )  # fmt: skip
    _, gateway, certificate, library, metrics, events, key, token = _check_pool.supervisor(context)
    assert (gateway.check, gateway.message) == ("[gateway]", "its process has ended 3 times within 10m")
    assert "gateway.log" in gateway.fix
    assert certificate.fix.startswith("check `tls` of [gateway]")
    assert (library.message, library.fix) == ("uvloop is not installed", "pip install 'poolctl[gateway]'")
    assert metrics.fix.startswith("free the address")
    assert (events.check, events.message.split()[0]) == ("[events]", "3")
    assert events.fix == "make it writable, or name another file as events.path, then run poolctl reload"
    assert key.fix == "check `tls` of [operator], then run poolctl reload"
    assert token.fix == "export the variable, then run poolctl reload --env; or name a token_file"


def test_problem_of_a_table_that_stops_nothing_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = Feature(package="features.inventory", warnings={"inventory": "check the token"})
    monkeypatch.setattr(_check_pool, "features", lambda: (feature,))
    context = CheckContext(None, {})
    context.about = PingResult(
        name="shop", files=(), version="1", protocol=1, python="3.11", supervisor_pid=1, keeper_pid=2,
        not_served=("[inventory]: its API answered 401", "[metrics]: port 9464 is in use"),
    )  # fmt: skip
    _, inventory, metrics = _check_pool.supervisor(context)
    assert (inventory.status, inventory.message, inventory.fix) == (
        "warning",
        "its API answered 401",
        "check the token",
    )
    assert metrics.status == "problem"


def test_gateway_that_serves_is_named_with_its_addresses() -> None:
    context = CheckContext(None, {})
    context.about = PingResult(
        name="shop", files=(), version="1", protocol=1, python="3.11", supervisor_pid=1, keeper_pid=2
    )  # fmt: skip
    context.gateway = {"state": "running", "problem": "", "addresses": ["http://127.0.0.1:8080"], "routes": 4}
    _, gateway = _check_pool.supervisor(context)
    assert (gateway.status, gateway.message) == ("ok", "running: http://127.0.0.1:8080; 4 routes")
    context.gateway["problem"] = "port 8080 is in use"
    assert len([*_check_pool.supervisor(context)]) == 1


def test_a_fix_that_consecutive_problems_share_is_printed_once(poolctl: Command, directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [each.getsockname()[1] for each in (one, other)]
        text = "".join(server(f"s{port}", bind=f"127.0.0.1:{port}", app="hello:app") for port in ports)
        (directory / "pool.toml").write_text(text)
        said = poolctl("doctor", "--quiet")
        document = poolctl("doctor", "-o", "json").json
    lines = said.out.splitlines()
    at = [number for number, line in enumerate(lines) if "is in use by" in line]
    assert at[1] == at[0] + 1, said.out
    assert [line.lstrip()[0] for line in lines[at[0] :][:3]] == ["p", "p", "→"]
    fixes = {item["fix"] for item in document["items"] if "is in use by" in item["message"]}
    assert len(fixes) == 1, fixes
    assert "" not in fixes


def test_document_has_the_checks_as_items(poolctl: Command) -> None:
    document = poolctl("doctor", "-o", "json").json
    assert list(document) == ["schema", "items", "errors"]
    for found in document["items"]:
        assert list(found) == ["name", "check", "status", "message", "fix"]
        assert bool(found["fix"]) == (found["status"] != "ok")
