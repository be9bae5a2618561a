"""A change that HAProxy refuses only when it starts: what it has accepted before is served, also after its death."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolctl.exit_codes import FAILED
from tests.features.gateway.conftest import ROUTES, GatewayPool
from tests.ports import claim_port
from tests.programs import program

pytestmark = pytest.mark.integration

# Refuses a word, but not when it only checks a file, until there is a file "patient" beside it.
STUBBORN = """#!/bin/sh
if [ "$1" = -D ] && grep -qs refuse-this "$3" && [ ! -e "${{0%/*}}/patient" ]; then
    echo "[ALERT]    ($$) : config : it has a word that I refuse" >&2
    exit 1
fi
exec {haproxy} "$@"
"""
MARKED = ROUTES + 'response_headers = { X-Mark = "refuse-this" }\n'
WHY = "the configuration before is in use, as HAProxy refuses this one: config : it has a word that I refuse"


@pytest.fixture
def stubborn(tmp_path: Path) -> str:
    path = tmp_path / "stubborn"
    path.write_text(STUBBORN.format(haproxy=program("haproxy")))
    path.chmod(0o755)
    return f'program = "{path}"'


def reload_refused(gateway: GatewayPool) -> None:
    done = gateway.pool.run("reload")
    assert (done.code, WHY in done.stderr) == (FAILED, True), done


def kill_haproxy(gateway: GatewayPool) -> int:
    process = gateway.until(gateway.process)
    gateway.kill(process)
    return int(process)


def warnings_of(gateway: GatewayPool) -> str:
    return gateway.pool.run("status").stderr


def test_killed_haproxy_comes_back_with_what_it_had_accepted(gateway: GatewayPool, stubborn: str) -> None:
    gateway.start(gateway=stubborn)
    gateway.until(lambda: gateway.get("/one").status == 200)
    gateway.write(MARKED, stubborn)
    reload_refused(gateway)
    for _ in range(2):  # and when that one dies, too
        before = kill_haproxy(gateway)
        assert gateway.get("/one").status == 200  # waits in the backlog
        gateway.until(lambda: WHY in warnings_of(gateway))
        gateway.until(lambda before=before: gateway.process() not in (None, before))
    gateway.pool.ok("restart", "one")  # servers are followed
    assert gateway.get("/one").status == 200


def test_change_that_is_accepted_after_a_refused_one_is_served(gateway: GatewayPool, stubborn: str) -> None:
    gateway.start(gateway=stubborn)
    gateway.write(MARKED, stubborn)
    reload_refused(gateway)
    kill_haproxy(gateway)
    gateway.until(lambda: WHY in warnings_of(gateway))
    gateway.write(MARKED.replace("refuse-this", "welcome"), stubborn)
    gateway.pool.ok("reload")
    assert WHY not in warnings_of(gateway)
    assert gateway.get("/two").headers["x-mark"] == "welcome"


def test_address_that_a_refused_change_leaves_is_served_after_a_death(
    gateway: GatewayPool, stubborn: str
) -> None:
    gateway.start(gateway=stubborn)
    gateway.until(lambda: gateway.get("/one").status == 200)
    old, gateway.port = gateway.port, claim_port()
    gateway.write(MARKED, stubborn)
    reload_refused(gateway)
    kill_haproxy(gateway)
    gateway.port, new = old, gateway.port
    gateway.until(lambda: gateway.get("/one").status == 200)
    gateway.port = new
    gateway.write(ROUTES, stubborn)
    gateway.pool.ok("reload")
    assert gateway.get("/one").status == 200
    gateway.port = old
    with pytest.raises(ConnectionRefusedError):
        gateway.get("/one")


def test_address_that_a_refused_change_widens_is_served_and_moves_once_it_is_accepted(
    gateway: GatewayPool, stubborn: str, tmp_path: Path
) -> None:
    """The wider address cannot be opened before the narrow one is closed: the port is the same."""
    gateway.start(gateway=stubborn)
    gateway.until(lambda: gateway.get("/one").status == 200)
    gateway.write(MARKED, stubborn)
    text = (gateway.pool.directory / "pool.toml").read_text()
    narrow = f'"127.0.0.1:{gateway.port}"'
    assert narrow in text
    gateway.pool.write("pool.toml", text.replace(narrow, f'"0.0.0.0:{gateway.port}"'))
    reload_refused(gateway)
    for _ in range(2):
        assert gateway.get("/one").status == 200
        assert not accepts("127.0.0.2", gateway.port)
        kill_haproxy(gateway)
    assert gateway.get("/one").status == 200
    (tmp_path / "patient").touch()
    gateway.until(lambda: accepts("127.0.0.2", gateway.port))
    gateway.until(lambda: gateway.get("/two").headers.get("x-mark") == "refuse-this")


def accepts(host: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0
