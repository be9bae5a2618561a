"""Starting, stopping, failing and replacing servers, with the same results in every kind of pool."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.http_get import asked_all_the_time, get, refused

from .pools import Site, in_background

# A program that binds the port itself, accepts once allowed, and sends READY=1 if requested.
PROGRAM = """
import http.server, os, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
if path := os.environ.get("NOTIFY_SOCKET"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", path.replace("@", "\\0", 1))
server.serve_forever()
"""


def program(*args: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *args]


def job_and_dependant(site: Site, *, status: int) -> list[dict[str, Any]]:
    job = site.server("migrate", job=True, command=[sys.executable, "-c", f"raise SystemExit({status})"])
    return [job, site.server("web", depends_on=[{"name": "migrate", "condition": "completed"}])]


def test_start_returns_when_every_server_answers_and_stop_when_none_does(make_pool: Any, site: Site) -> None:
    pool = make_pool(site.server("db"), site.server("web", depends_on=["db"]))
    assert pool.start() == {}
    assert site.instance("db") != site.instance("web")
    assert (pool.item("web")["state"], pool.item("web")["ready"]) == ("running", True)
    assert pool.stop() == {}
    with pytest.raises(ConnectionRefusedError):
        site.instance("web")
    assert site.history == [
        "db starts", "db has started", "web starts", "web has started", "web has stopped", "db has stopped",
    ]  # fmt: skip


def test_each_kind_of_host_is_served_at_every_address_that_it_means(make_pool: Any, site: Site) -> None:
    pool = make_pool(
        site.server("db", bind="localhost:{port}"),
        site.server("web", bind=":{port}"),
        site.server("six", app="web", bind="[0:0::1]:{port}"),
    )
    assert pool.start() == {}
    hosts = {str(entry[4][0]) for entry in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)}
    for name in ("db", "web"):
        for host in hosts | {"127.0.0.1"}:
            assert (
                get(f"[{host}]:{site.ports[name]}" if ":" in host else f"{host}:{site.ports[name]}").status
                == 200
            )
    assert get(f"[::1]:{site.ports['six']}").status == 200
    assert refused(site.ports["six"])


def test_a_unix_socket_takes_the_place_of_a_stale_one_and_is_removed_by_stop(
    make_pool: Any, site: Site, short_path: Path
) -> None:
    path = short_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # left behind by a program that has ended
    pool = make_pool(site.server("web", bind=f"unix:{path}"))
    for act in (pool.start, lambda: pool.restart("web"), pool.stop, pool.start):
        assert act() == {}
        assert act == pool.stop or get(f"unix:{path}").status == 200
        assert path.exists() is (act != pool.stop)


def test_a_server_whose_dependency_failed_is_not_started_and_reports_it(make_pool: Any, site: Site) -> None:
    site.let("db", "fails")
    pool = make_pool(site.server("db"), site.server("web", depends_on=["db"]))
    failures = pool.start()
    assert "no database" in failures["db"]
    assert failures["web"] == "waits for db, which did not become ready"
    assert "web starts" not in site.history


def test_a_dependency_that_is_to_be_ready_is_waited_for(make_pool: Any, site: Site) -> None:
    site.let("db", "hangs")
    pool = make_pool(site.server("db"), site.server("web", depends_on=["db"]))
    ended = in_background(pool.start)
    wait_until(lambda: site.history == ["db starts"])
    site.let("db", "hangs", be=False)
    assert ended() == {}
    assert site.history.index("db has started") < site.history.index("web starts")


def test_a_dependency_that_is_to_be_started_is_not_waited_for(make_pool: Any, site: Site) -> None:
    site.let("db", "hangs")
    dependency = {"name": "db", "condition": "started"}
    pool = make_pool(site.server("db", start_timeout=60), site.server("web", depends_on=[dependency]))
    ended = in_background(pool.start)
    try:
        wait_until(lambda: "web has started" in site.history)
    finally:
        site.let("db", "hangs", be=False)
        assert ended() == {}


def test_server_that_waits_for_a_job_starts_when_the_job_has_ended_with_0(make_pool: Any, site: Site) -> None:
    pool = make_pool(*job_and_dependant(site, status=0), programs=True)
    assert pool.start() == {}
    assert (pool.item("migrate")["state"], pool.item("migrate")["ready"]) == ("completed", True)
    assert site.instance("web")


def test_a_job_that_ends_with_another_status_has_failed(make_pool: Any, site: Site) -> None:
    pool = make_pool(*job_and_dependant(site, status=1), programs=True)
    assert "exited with status 1" in pool.start()["migrate"]
    assert (pool.item("migrate")["state"], pool.item("migrate")["ready"]) == ("failed", False)


def test_restart_keeps_the_old_worker_when_its_replacement_fails(make_pool: Any, site: Site) -> None:
    pool = make_pool(site.server("web"))
    assert pool.start() == {}
    old = site.instance("web")
    site.let("web", "fails")
    assert "no database" in pool.restart("web")["web"]
    assert site.instance("web") == old
    assert (pool.item("web")["state"], pool.item("web")["ready"]) == ("running", True)
    site.let("web", "fails", be=False)
    assert pool.restart("web") == {}
    assert site.instance("web") != old


@pytest.mark.slow  # a probe that fails takes the whole start_timeout
def test_restart_keeps_the_old_worker_until_the_probe_of_its_replacement_passes(
    make_pool: Any, site: Site
) -> None:
    probe = {"http": "/healthz", "interval": "50ms", "timeout": "20s"}
    pool = make_pool(site.server("web", health={"readiness": probe}, start_timeout=10))
    assert pool.start() == {}
    old = site.instance("web")
    site.let("web", "ill")
    assert "was not ready within 10s: readiness: GET /healthz: status 503" in pool.restart("web")["web"]
    assert site.instance("web") == old
    site.let("web", "ill", be=False)
    assert pool.restart("web") == {}
    assert site.instance("web") != old


@pytest.mark.parametrize("overlap", [True, False])
def test_restart_refuses_nothing_and_ends_the_old_worker_first_only_without_overlap(
    make_pool: Any, site: Site, overlap: bool
) -> None:
    pool = make_pool(site.server("web", overlap=overlap))
    assert pool.start() == {}
    first = site.instance("web")
    with asked_all_the_time(site.ports["web"]) as answers:
        assert pool.restart("web") == {}
    second = site.instance("web")
    assert first != second
    # Without an overlap, a connection that the old worker has accepted may be closed by its end.
    assert [each for each in answers if each not in (first, second) and (overlap or "refused" in each)] == []
    wait_until(lambda: "web has stopped" in site.history)
    first, second = "web has stopped", "web has started"
    later = site.history[2:]  # after the first one's start
    assert (later.index(first) < later.index(second)) is not overlap


@pytest.mark.parametrize("notify", [True, False])
def test_a_program_that_binds_its_port_itself_is_restarted(make_pool: Any, site: Site, notify: bool) -> None:
    pool = make_pool(site.server("web", command=program("{port}"), notify=notify), programs=True)
    assert pool.start() == {}
    old = site.instance("web")
    assert pool.restart("web") == {}
    assert site.instance("web") != old
    assert [str(pid) for pid in pool.item("web")["pids"]] == [site.instance("web")]


def test_a_readiness_probe_decides_whether_a_server_is_ready(make_pool: Any, site: Site) -> None:
    probe = {"http": "/healthz", "interval": "50ms", "timeout": "20s", "fall_count_ko": 2}
    pool = make_pool(site.server("web", health={"readiness": probe}))
    assert pool.start() == {}
    assert (pool.item("web")["health"], pool.item("web")["ready"]) == ("ok", True)
    site.let("web", "ill")
    wait_until(lambda: pool.item("web")["health"] == "ko")
    assert (pool.item("web")["state"], pool.item("web")["ready"]) == ("running", False)
    assert site.instance("web"), "the last worker goes on accepting"
    site.let("web", "ill", be=False)
    wait_until(lambda: pool.item("web")["ready"])


def test_a_server_whose_readiness_probe_never_passes_has_failed_after_its_start_timeout(
    make_pool: Any, site: Site
) -> None:
    site.let("web", "ill")
    probe = {"http": "/healthz", "interval": "50ms"}
    pool = make_pool(site.server("web", health={"readiness": probe}, start_timeout=0.5))
    assert "was not ready within" in pool.start()["web"]
    assert pool.item("web")["state"] == "failed"


def test_several_workers_share_one_address_and_are_all_replaced(make_pool: Any, site: Site) -> None:
    pool = make_pool(site.server("web", workers=3), processes=True)
    assert pool.start() == {}
    assert site.history.count("web has started") == 3
    assert pool.restart("web") == {}
    wait_until(lambda: site.history.count("web has stopped") == 3)
    assert site.history.count("web has started") == 6
    assert site.instance("web")


def test_a_server_that_may_sleep_wakes_at_a_request_and_sleeps_again_where_that_saves_a_process(
    make_pool: Any, site: Site
) -> None:
    pool = make_pool(site.server("web", scale={"min": 0, "idle": "200ms"}))
    assert pool.start() == {}
    assert pool.item("web")["state"] == "sleeping"
    assert site.instance("web")
    wait_until(lambda: pool.item("web")["state"] in ("running", "draining", "sleeping"))
    if pool.runs_programs:
        wait_until(lambda: pool.item("web")["state"] == "sleeping")
        wait_until(lambda: "web has stopped" in site.history)
        assert site.instance("web")
    assert pool.stop() == {}
    with pytest.raises(ConnectionRefusedError):
        site.instance("web")


def test_a_worker_that_is_killed_is_replaced_as_the_restart_policy_says(make_pool: Any, site: Site) -> None:
    pool = make_pool(site.server("web", restart="on-failure"), site.server("db"), programs=True)
    assert pool.start() == {}
    (web,), (db,) = pool.item("web")["pids"], pool.item("db")["pids"]
    os.kill(web, signal.SIGTERM)  # which nobody has ordered
    os.kill(db, signal.SIGKILL)
    wait_until(lambda: pool.item("web")["ready"] and pool.item("web")["pids"] != [web])
    wait_until(lambda: pool.item("db")["state"] == "failed")
    assert site.instance("web")
    with pytest.raises(ConnectionRefusedError):
        site.instance("db")


def test_a_worker_that_has_served_its_requests_is_replaced_and_nothing_is_refused(
    make_pool: Any, site: Site
) -> None:
    pool = make_pool(site.server("web", http={"max_requests": 2}))
    assert pool.start() == {}
    first = site.instance("web")
    wait_until(lambda: site.instance("web") != first)
    wait_until(lambda: pool.item("web")["ready"])


def test_stop_ends_a_server_that_is_still_starting(make_pool: Any, site: Site) -> None:
    site.let("web", "hangs")
    pool = make_pool(site.server("web", stop_timeout=1))
    ended = in_background(pool.start)
    wait_until(lambda: site.history == ["web starts"])
    assert pool.stop("web") == {}
    assert "was stopped" in ended()["web"]
    assert pool.item("web")["state"] == "stopped"
    with pytest.raises(ConnectionRefusedError):
        site.instance("web")
