"""Variables that a `*_env` key names hold secrets of the pool: no server is given them unless it asks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import RealPool

TOKEN, HOOK, OTHER = "token-of-the-page", "http://127.0.0.1:9/hook-of-ours", "not-named-by-any-key"
REPORT = """
import json, os
from pathlib import Path
found = {"environ": dict(os.environ), "block": Path("/proc/self/environ").read_text()}
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})
"""
DUMP = (
    "import json, os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(json.dumps(dict(os.environ)))"
)


class Pool:
    """Servers of all kinds, and a page whose token is in the environment."""

    def __init__(self, pool: RealPool) -> None:
        self.pool = pool
        self.ports = {name: claim_port() for name in ("plain", "asks", "preloaded", "fresh")}
        pool.env |= {"PAGE_TOKEN": TOKEN, "HOOK": HOOK, "OTHER": OTHER}
        pool.write("report.py", REPORT)

    def write(self, *, page: bool = True, probe: str = DUMP) -> None:
        tables = ""
        if page:
            tables = f'[dashboard]\nbind = "127.0.0.1:{claim_port()}"\ntoken_env = "PAGE_TOKEN"\n'
            tables += '[[notify]]\ntype = "webhook"\nurl_env = "HOOK"\nevents = ["scale"]\n'
        keys: dict[str, dict[str, Any]] = {
            "plain": {
                "health": {"startup": {"exec": [sys.executable, "-c", probe, "probe.json"], "timeout": "20s"}}
            },
            "asks": {"env": {"HOOK": "${HOOK}"}},
            "preloaded": {"preload": True},
            "fresh": {"env": {"PYTHONHASHSEED": "7"}},
        }
        servers = "".join(
            server(name, bind=f"127.0.0.1:{port}", app="report:app", **keys[name])
            for name, port in self.ports.items()
        )
        job = server("job", job=True, command=[sys.executable, "-c", DUMP, "job.json"])
        self.pool.write("pool.toml", tables + servers + job)

    def of(self, name: str) -> tuple[dict[str, str], str]:
        """The environment of the server's worker: as it sees it, and what stands in /proc."""
        found = get(self.ports[name]).json()
        return found["environ"], found["block"]

    def dumped(self, name: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.pool.directory / name).read_text())
        return found


def test_no_server_program_probe_or_helper_is_given_what_a_key_names(pool: RealPool) -> None:
    pools = Pool(pool)
    pools.write()
    pool.ok("start")
    for name in pools.ports:
        environ, block = pools.of(name)
        assert environ["OTHER"] == OTHER
        assert TOKEN not in block + str(environ), name
        assert (HOOK in str(environ)) == (name == "asks"), name
        assert HOOK not in block, name
    for name in ("probe.json", "job.json"):
        environ = pools.dumped(name)
        assert environ["OTHER"] == OTHER
        assert environ.keys().isdisjoint({"PAGE_TOKEN", "HOOK"}), name

    def with_token() -> dict[str, bool]:
        found = {}
        for pid, line in pool.processes().items():
            part = line.partition("bootstrap.py ")[2].partition(" ")[0]
            with contextlib.suppress(OSError):  # it has ended
                found[part] = TOKEN in Path(f"/proc/{pid}/environ").read_text()
        return found

    expected = {
        "keeper": True,
        "supervisor": True,
        "worker": False,
        "logs": False,
        "web": False,
    }
    wait_until(lambda: with_token() == expected, what=lambda: str(with_token()))
    for options in ([], ["--env"]):
        pool.ok("restart", *options)
        for name in pools.ports:
            environ, block = pools.of(name)
            assert environ["OTHER"] == OTHER
            assert TOKEN not in block + str(environ), name


@pytest.mark.heavy
def test_a_section_that_is_added_takes_its_variable_from_the_servers_that_start_afterwards(
    pool: RealPool,
) -> None:
    pools = Pool(pool)
    pools.write(page=False)
    pool.ok("start")
    assert TOKEN in pools.of("plain")[1]
    pools.write()
    done = pool.ok("reload")
    assert "PAGE_TOKEN is still in the environment of plain, asks, preloaded, fresh" in done.stderr
    pool.ok("restart")
    for name in pools.ports:
        environ, block = pools.of(name)
        assert environ["OTHER"] == OTHER
        assert TOKEN not in block + str(environ), name
    pools.write(page=False)
    pool.ok("reload")
    pool.ok("restart")
    assert all(TOKEN in str(pools.of(name)) for name in pools.ports)


@pytest.mark.heavy
def test_a_name_that_cannot_be_seen_in_the_text_of_the_file_is_withheld_as_well(pool: RealPool) -> None:
    pools = Pool(pool)
    pools.write()
    pool.replace('"PAGE_TOKEN"', '"${NAME_OF_IT}"')
    pool.env["NAME_OF_IT"] = "PAGE_TOKEN"
    pool.ok("start")
    assert all(TOKEN not in str(pools.of(name)) for name in pools.ports)


@pytest.mark.heavy
def test_successors_of_supervisor_and_keeper_and_another_version_withhold_it_too(
    pool: RealPool, until: Any
) -> None:
    pools = Pool(pool)
    pools.write()
    pool.ok("start", "plain", "preloaded")
    for end in (
        lambda: os.kill(pool.info()["supervisor_pid"], signal.SIGKILL),
        lambda: os.kill(pool.info()["keeper_pid"], signal.SIGKILL),
        lambda: pool.ok("upgrade", "--allow-same-version"),
    ):
        before = pool.info()["supervisor_pid"]
        end()
        until(lambda before=before: pool.info()["supervisor_pid"] != before)
        until(lambda: pool.run("status", "plain", "preloaded").code == 0)
        pool.ok("restart", "plain", "preloaded")
        assert TOKEN not in str([pools.of("plain"), pools.of("preloaded")])


def test_validate_says_which_variables_no_server_is_given(pool: RealPool) -> None:
    pools = Pool(pool)
    pools.write()
    done = pool.ok("validate")
    assert done.stdout == "5 servers, ok (applications not imported: --import)\n"
    assert "note: not passed to servers: HOOK, PAGE_TOKEN" in done.stderr
    assert 'env = { HOOK = "${HOOK}" }' in done.stderr
    pools.write(page=False)
    assert pool.ok("validate").stderr == ""


def test_the_value_is_masked_also_where_a_server_has_it_under_another_name(pool: RealPool) -> None:
    pools = Pool(pool)
    pools.write()
    pool.replace('"HOOK" = "${HOOK}"', '"ADDRESS" = "to ${HOOK}"')
    for command in ("show", "config"):
        assert HOOK not in pool.ok(command).stdout
    pool.ok("start", "asks")
    assert pools.of("asks")[0]["ADDRESS"] == f"to {HOOK}"
    for command in ("show", "config"):
        assert "to ********" in pool.ok(command).stdout
        assert HOOK in pool.ok(command, "--reveal").stdout


def test_env_file_next_to_the_file_gives_servers_its_variables_but_those_of_the_pool(pool: RealPool) -> None:
    port = claim_port()
    pool.write("report.py", REPORT)
    pool.write(".env", f"PAGE_TOKEN={TOKEN}\nLEVEL=debug\nKEPT=file\n")
    page = f'[dashboard]\nbind = "127.0.0.1:{claim_port()}"\ntoken_env = "PAGE_TOKEN"\n'
    table = server("plain", bind=f"127.0.0.1:{port}", app="report:app", env={"KEPT": "table"})
    pool.write("pool.toml", page + table)
    pool.ok("start", env={"PAGE_TOKEN": TOKEN, "LEVEL": "info"})
    found = get(port).json()
    assert (found["environ"]["LEVEL"], found["environ"]["KEPT"]) == ("debug", "table")
    assert TOKEN not in json.dumps(found)
    assert TOKEN not in pool.ok("show", "plain", "--full").stdout
    (pool.directory / ".env").unlink()
    assert "~ plain: env_file\n" in pool.ok("reload").stdout
    assert get(port).json()["environ"]["LEVEL"] == "info"
