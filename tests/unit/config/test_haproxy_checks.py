"""What HAProxy cannot do is a problem of a file that chooses it, and of no other file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config_files import load_text
from tests.configuration import server

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
        ("waiting_page = true", "route[0].waiting_page: HAProxy shows no waiting page"),
        ('probe_responses = ["/health"]', "route[0].probe_responses: HAProxy does not answer probes"),
        ("context_headers = true", "route[0].context_headers: HAProxy does not send the route's context"),
        ('max_body_size = "1M"', "route[0].max_body_size: HAProxy does not limit the size of bodies"),
        ('timeouts = { total = "1s" }', "route[0].timeouts.total: HAProxy has no limit for a whole request"),
        ("breaker = { statuses = [500] }", "route[0].breaker.statuses: HAProxy's breaker counts connections"),
        ("limit = { concurrency = 3, queue = 1 }", "route[0].limit.queue: HAProxy has queues for backends"),
        ("limit = { requests_per_second = 3, burst = 9 }", "route[0].limit.burst: HAProxy has no bursts"),
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
        (ENGINE + "access_log = true\n" + WEB, "gateway.access_log: HAProxy does not write this log"),
        (
            ENGINE + 'bind = { bind = ":8443", tls = true }\n' + WEB,
            "gateway.bind.tls: HAProxy terminates TLS, and passes no connections: it needs a certificate",
        ),
        (
            ENGINE + 'bind = { bind = ":8443", tls = { cert = "c", password_env = "P" } }\n' + WEB,
            "bind.tls.password_env: HAProxy cannot read a key with a password",
        ),
        (
            ENGINE + '[[stream]]\nbind = ":53"\nprotocol = "udp"\nto = "10.0.0.1:53"\n',
            "stream[0].protocol: HAProxy has no streams of UDP",
        ),
        (
            ENGINE + '[[stream]]\nbind = ":53"\nto = "10.0.0.1:53"\ntimeouts = { total = "1s" }\n',
            "stream[0].timeouts.total: HAProxy has no limit for a whole connection",
        ),
        (
            ENGINE + WEB + '[operator]\nurl = "http://127.0.0.1:8012"\n',
            "operator.url: HAProxy informs no operator of requests",
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
        ('[gateway]\nengine = "nginx"\n' + WEB, "gateway.engine"),
    ],
)
def test_table_that_haproxy_cannot_serve_is_a_problem(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in problems(tmp_path, text)


def test_missing_program_is_found_by_validate_and_needs_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poolctl.config.checks import gateway_checks

    monkeypatch.setattr(gateway_checks, "GATEWAY_LIBRARIES", ("no_such_library",))
    config = load_text(tmp_path, ENGINE + 'program = "/nowhere/haproxy"\n' + WEB)
    assert config.problems == []
    found = "\n".join(map(str, config.outside()))
    assert "/nowhere/haproxy is not installed; install HAProxy" in found
    assert "no_such_library" not in found
