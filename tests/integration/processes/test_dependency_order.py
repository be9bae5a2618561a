"""Servers that change together with what they depend on: they are replaced after it, or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.pools import Failures, Site, in_background
from tests.behaviour.test_lifecycle import program
from tests.deadline import wait_until
from tests.ports import claim_port
from tests.real_pool import RealPool

WEBS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several workers": {"workers": 2},
    "no overlap": {"overlap": False},
    "own socket": {"command": program("{port}"), "env": {}},
}
# A job that runs as long as there is a file.
JOB = """
import os, time
while os.path.exists("job.hangs"):
    time.sleep(0.01)
raise SystemExit(os.path.exists("job.fails"))
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def write(pool: RealPool, *tables: dict[str, Any]) -> None:
    pool.write("pool.json", json.dumps({"server": tables}))


def changed(table: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {**table, "env": {"CHANGED": "1"}, **keys}


def failures(pool: RealPool, *args: str) -> Failures:
    """The messages and hints of a command's errors, by server."""
    done = pool.run(*args, "-o", "json", "--timeout", "40")
    assert done.code == (1 if done.json["errors"] else 0), done
    return {each["name"]: f"{each['message']}; {each['hint']}" for each in done.json["errors"]}


def planned(pool: RealPool) -> set[str]:
    return {each["name"] for each in pool.run("reload", "--dry-run", "-o", "json").json["changes"]}


@pytest.mark.parametrize("keys", list(WEBS))
def test_reload_replaces_a_server_after_its_dependency_or_not_at_all(
    pool: RealPool, site: Site, keys: str
) -> None:
    db, web = site.server("db"), site.server("web", depends_on=["db"], **WEBS[keys])
    write(pool, db, web)
    pool.ok("start")
    site.let("db", "hangs")
    write(pool, changed(db, bind=f"127.0.0.1:{claim_port()}"), changed(web))
    before = pool.items()["web"]["pids"]
    reloading = in_background(lambda: failures(pool, "reload"))
    wait_until(lambda: site.history.count("db starts") == 2)
    assert "web: keeps its workers until db, on which it depends, is ready" in pool.ok("status").stderr
    site.instance("web")
    site.let("db", "fails")
    site.let("db", "hangs", be=False)
    found = reloading()
    assert "no database" in found.pop("db")
    assert found == {
        "web": "was not replaced and runs as before, because db, on which it depends, has failed; "
        "poolctl logs db; then poolctl reload"
    }
    assert pool.items()["web"]["pids"] == before
    assert planned(pool) == {"db", "web"}

    site.let("db", "fails", be=False)
    assert failures(pool, "reload") == {}
    assert not {*pool.items()["web"]["pids"]} & {*before}
    assert planned(pool) == set()


def test_reload_runs_a_failed_job_before_the_server_that_depends_on_it(pool: RealPool, site: Site) -> None:
    job = site.server("job", job=True, command=[sys.executable, "-c", JOB])
    needs_job = [{"name": "job", "condition": "completed"}]
    web = site.server("web", overlap=False, depends_on=needs_job)
    write(pool, job, web)
    pool.ok("start")
    site.let("job", "fails")
    assert pool.run("start", "job").code == 0, "it has completed, and is not run again"
    assert {*failures(pool, "restart", "job", "web")} == {"job", "web"}
    site.let("job", "hangs")
    write(pool, changed(job), changed(web))
    before = pool.items()["web"]["pids"]
    reloading = in_background(lambda: failures(pool, "reload"))
    wait_until(lambda: pool.items()["job"]["state"] == "starting")
    assert pool.items()["web"]["pids"] == before
    site.let("job", "fails", be=False)
    site.let("job", "hangs", be=False)
    assert reloading() == {}
    assert pool.items()["web"]["pids"] != before
    write(pool, changed(job, tags=["again"]), changed(web, env={"CHANGED": "2"}))
    site.let("job", "hangs")  # it is not run again
    assert failures(pool, "reload") == {}


def test_restart_replaces_a_server_after_its_dependency_or_not_at_all(pool: RealPool, site: Site) -> None:
    write(pool, site.server("web", depends_on=["db"]), site.server("db"))
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    site.let("db", "fails")
    found = failures(pool, "restart")
    assert found["web"].endswith("; poolctl logs db; then poolctl restart web")
    assert pool.items()["web"]["pids"] == before
    assert failures(pool, "restart", "web") == {}, "alone it is replaced"
    site.let("db", "fails", be=False)
    assert failures(pool, "restart") == {}
    assert site.history[-6:-1] == ["db starts", "db has started", *site.history[-4:-1]]


def test_replacement_that_waits_for_a_dependency_survives_the_supervisor(pool: RealPool, site: Site) -> None:
    db, web = site.server("db"), site.server("web", depends_on=["db"], overlap=False)
    write(pool, db, web)
    pool.ok("start")
    before = pool.items()
    site.let("db", "hangs")
    write(pool, changed(db), changed(web))
    pool.ok("reload", "--no-wait")
    wait_until(lambda: site.history.count("db starts") == 2)
    pool.replace_supervisor()
    assert pool.items()["web"]["pids"] == before["web"]["pids"]
    site.let("db", "hangs", be=False)
    wait_until(lambda: site.history.count("web has started") == 2)
    assert site.history.index("web has stopped") > site.history.index("db starts", 2)
