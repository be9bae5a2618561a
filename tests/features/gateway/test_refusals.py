"""What HAProxy refuses is refused before anything is started, at the key of the pool's file."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from poolctl.config import load
from poolctl.exit_codes import INVALID_CONFIGURATION
from tests.environments import need_gateway
from tests.features.gateway.conftest import ROUTES, GatewayPool

ZONE = "fe80::1%eth0"  # Python takes an address with a zone for one, and HAProxy does not
ZONE_URL = "http://[fe80::1%25eth0]:80"
LONG = f"unix:/tmp/{'a' * 95}"  # the system takes 107 bytes, and HAProxy 97
SERVER = '[[server]]\nname = "web"\nbind = "127.0.0.1:8001"\napp = "app:app"\n'
TLS = 'bind = [{{ bind = ":8443", tls = {{ cert = "c.pem", key = "k.pem", {} }} }}]'


def settings(line: str) -> str:
    return f'[gateway]\n{line}\n[[route]]\nto = "web"\n{SERVER}'


def route(line: str) -> str:
    return f'[[route]]\nto = "web"\n{line}\n{SERVER}'


def targets(line: str) -> str:
    return f"[[route]]\n{line}\n{SERVER}"


def stream(line: str) -> str:
    return f'[[stream]]\nbind = ":9000"\n{line}\n{SERVER}'


def ciphers(text: str) -> str:
    return settings(TLS.format(f"ciphers = {text!r}"))


REFUSED = [
    (settings('max_head_size = "256MiB"'), "gateway.max_head_size"),
    (settings('max_head_size = "300MiB"'), "gateway.max_head_size"),
    (settings('max_head_size = "1GiB"'), "gateway.max_head_size"),
    (settings(f'trusted_proxies = ["{ZONE}"]'), "gateway.trusted_proxies"),
    (settings(f'trusted_proxies = ["10.0.0.1", "{ZONE}", "10.0.0.2"]'), "gateway.trusted_proxies"),
    (settings(f'trusted_proxies = ["{ZONE}/64"]'), "gateway.trusted_proxies"),
    (
        settings(f'trusted_proxies = ["{ZONE}"]\nbind = {{ bind = ":80", accept_proxy_protocol = true }}'),
        "gateway.trusted_proxies",
    ),
    *(
        (ciphers(text), "gateway.bind")
        for text in (
            "NONE-OF-THESE", "HI,GH", " ", "]", "HIGH]", "[HIGH", "#", "$HOME", "@SECLEVEL=9", "PROFILE=SYSTEM",
            "TLS_AES_128_GCM_SHA256", "a'b",
        )
    ),
    (
        settings('bind = { bind = ":8443", tls = [{ cert = "c.pem" }, { cert = "d.pem", ciphers = "NONE" }] }'),
        "gateway.bind",
    ),
    (route('set_headers = { X-A = "" }'), "route[0].set_headers.X-A"),
    (route('add_headers = { X-A = "1", X-B = "" }'), "route[0].add_headers.X-B"),
    (route('response_headers = { X-A = "" }'), "route[0].response_headers.X-A"),
    (route(f'allow = ["{ZONE}"]'), "route[0].allow"),
    (route(f'path = "/a"\nallow = ["::1", "{ZONE}"]'), "route[0].allow"),
    (targets(f'to = "{ZONE_URL}"'), "route[0].to"),
    (targets(f'to = ["web", "{ZONE_URL}"]'), "route[0].to"),
    (targets(f'to = [{{ to = "{ZONE_URL}", weight = 2 }}, "web"]'), "route[0].to"),
    (targets(f'to = "{ZONE_URL.replace("http", "https")}"'), "route[0].to"),
    (targets(f'to = "{LONG}"'), "route[0].to"),
    (targets(f'to = ["web", "{LONG}"]'), "route[0].to"),
    (targets(f'to = "u"\n[[server]]\nname = "u"\nbind = "{LONG}"\napp = "app:app"'), "route[0].to"),
    (stream(f'to = "{ZONE_URL[7:]}"'), "stream[0].to"),
    (stream(f'to = ["127.0.0.1:1", "{ZONE_URL[7:]}"]'), "stream[0].to"),
    (stream(f'to = "{LONG}"'), "stream[0].to"),
    ('[[stream]]\nbind = ":9001"\nto = "web"\n' + stream(f'to = "{LONG}"'), "stream[1].to"),
    (f'[gateway]\n{SERVER}labels = {{ "route.set_headers.X-A" = "" }}', "server[0].labels.route.set_headers.X-A"),
    (
        f'[gateway]\n{SERVER}labels = {{ "route.path" = "/a", "route.response_headers.X-A" = "" }}',
        "server[0].labels.route.response_headers.X-A",
    ),
]  # fmt: skip


def problems_of(directory: Path, text: str) -> list[str]:
    need_gateway()
    (file := directory / "pool.toml").write_text(text)
    config = load([str(file)], {})
    return [str(each).partition(": ")[2] for each in config.problems or config.startup_problems()]


@pytest.mark.parametrize(("text", "key"), REFUSED)
def test_refusal_of_haproxy_is_a_problem_of_its_key(tmp_path: Path, text: str, key: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert re.match(rf"{re.escape(key)}: \S.*; \S", problem), problem
    assert "haproxy.cfg" not in problem


def test_certificates_users_names_and_addresses_need_not_exist_here(tmp_path: Path) -> None:
    text = f"""
        [gateway]
        user = "no-such-user"
        bind = [
            "unix:/no/such/directory/gateway",
            {{ bind = "192.0.2.1:443", tls = {{ cert = "no.pem", ca = "no.ca", client_auth = "required" }} }},
        ]
        [[route]]
        to = [{{ to = "https://name.invalid", ca = "/no/ca.pem" }}, "http://name.invalid:80", "web"]
        {SERVER}"""
    assert problems_of(tmp_path, text) == []


def test_refusal_without_a_key_is_a_problem_of_the_gateway(tmp_path: Path) -> None:
    """Here of a program that refuses everything, and says why in its own words."""
    program = tmp_path / "haproxy"
    program.write_text(
        '#!/bin/sh\n[ "$1" = -v ] && exec echo "HAProxy version 2.8.0"\necho "no\tluck" >&2\nexit 3\n'
    )
    program.chmod(0o755)
    (problem,) = problems_of(tmp_path, settings(f'program = "{program}"'))
    assert problem.startswith("gateway: HAProxy does not accept it: it exits with 3: no luck; "), problem


def test_check_without_room_for_its_files_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/directory")
    assert problems_of(tmp_path, settings(f'trusted_proxies = ["{ZONE}"]')) == []


def test_hint_of_a_check_of_our_own_wins(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, route('set_headers = { X-A = "" }'))
    assert problem.endswith('HAProxy sends no header without a value; write remove_headers = ["X-A"]')


@pytest.mark.integration
def test_reload_of_what_haproxy_refuses_changes_nothing(gateway: GatewayPool) -> None:
    gateway.start()
    before = gateway.until(gateway.process)
    gateway.write(ROUTES + f'allow = ["{ZONE}"]\n')
    for command in ("validate", "reload"):
        done = gateway.pool.run(command)
        assert done.code == INVALID_CONFIGURATION, done
        assert "route[1].allow: HAProxy does not accept it: " in done.stdout + done.stderr
    assert gateway.process() == before
    gateway.until(lambda: gateway.get("/two").status == 200)


def test_pool_without_its_program_is_told_that_alone(tmp_path: Path) -> None:
    text = settings(f'program = "/no/haproxy"\ntrusted_proxies = ["{ZONE}"]')
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith("gateway.program: /no/haproxy is not installed"), problem
