"""The metrics of a real pool: by the command and over HTTP, in both formats, whoever asks and whoever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as text_families

import poolctl
from tests.deadline import wait_until
from tests.http_get import Reply, get
from tests.ports import claim_port
from tests.real_pool import RealPool

# More than the kernel's buffers take of a connection that is not read from.
MAX_UNREAD_BYTES = 16 * 1024 * 1024
PROBED = 'health = { liveness = { http = "/", interval = "100ms", timeout = "20s" } }\n'


@pytest.fixture
def exposed(pool: RealPool) -> int:
    """The port of the metrics of a pool with a server `web` of two workers, and one that sleeps."""
    port = claim_port()
    pool.write_hello("web", "idle")
    text = (pool.directory / "pool.toml").read_text()
    text = text.replace('name = "web"\n', 'name = "web"\nworkers = 2\n' + PROBED)
    text = text.replace('name = "idle"\n', 'name = "idle"\nscale = { min = 0, idle = "10m" }\n')
    pool.write("pool.toml", f'[metrics]\nbind = "127.0.0.1:{port}"\n{text}')
    pool.ok("start")
    return port


def values(families: Any) -> dict[tuple[str, ...], float]:
    """By the name of the sample, and the values of its labels."""
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def asked(port: int) -> tuple[str, bytes]:
    """The content type, and what it is the type of."""
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    lines = head.decode().lower().split("\r\n")
    (kind,) = [line.partition(": ")[2] for line in lines if line.startswith("content-type:")]
    return kind, body


@pytest.mark.capability
def test_command_and_address_tell_the_same(pool: RealPool, exposed: int) -> None:
    began = time.monotonic()
    for _ in range(3):
        get(pool.ports["web"])
    get(pool.ports["idle"])

    def counted(name: str) -> float:
        found = values(text_families(pool.ok("metrics").stdout))
        return found["poolctl_requests_total", name] - found["poolctl_requests_in_flight", name]

    # A worker writes its counts a moment after its clients have their responses.
    wait_until(lambda: (counted("web"), counted("idle")) == (3, 1))
    # What the supervisor asks itself is counted nowhere.
    wait_until(lambda: "poolctl_monitor_latency_seconds" in pool.ok("metrics", "web").stdout)
    kind, body = asked(exposed)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found = values(text_families(body.decode()))
    assert found["poolctl_requests_total", "web"] == 3
    assert found["poolctl_responses_total", "web", "2xx"] == 3
    assert found["poolctl_request_duration_seconds_count", "web"] == 3
    assert found["poolctl_request_duration_seconds_bucket", "web", "+Inf"] == 3
    assert 0 < found["poolctl_request_duration_seconds_sum", "web"] < time.monotonic() - began
    assert found["poolctl_server_wakes_total", "idle"] == 1
    assert found["poolctl_servers", "running"] == 2
    assert found["poolctl_monitor_status", "web", "ok"] == 1
    assert 0 < found["poolctl_monitor_sli_ratio", "web"] <= 1
    assert 0 < found["poolctl_monitor_latency_seconds", "web"] < 20
    assert found["poolctl_worker_memory_bytes", "web", "1"] > 1_000_000
    assert sum(found["poolctl_worker_requests_total", "web", index] for index in "01") == 3
    assert values(text_families(pool.ok("metrics").stdout)).keys() == found.keys()
    only = values(text_families(pool.ok("metrics", "idle").stdout))
    assert {key[1] for key in only if key[0] == "poolctl_requests_total"} == {"idle"}


def test_no_scrape_fails_while_the_supervisor_is_replaced(pool: RealPool, exposed: int) -> None:
    before = values(text_families(asked(exposed)[1].decode()))
    supervisor = pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    answers = 0
    while pool.info()["supervisor_pid"] == supervisor or answers < 3:
        found = values(text_families(asked(exposed)[1].decode()))
        answers += 1
        key = ("poolctl_monitor_uptime_seconds_total", "web")
        assert found[key] >= before[key]


@pytest.mark.heavy
def test_a_reload_moves_them_and_takes_them_away(pool: RealPool, exposed: int) -> None:
    path = pool.directory / "pool.toml"
    moved = claim_port()
    text = path.read_text()
    path.write_text(text.replace(str(exposed), str(moved)).replace("[metrics]", '[metrics]\npath = "/m"'))
    pool.ok("reload")
    wait_until(lambda: answers(moved, "/m"))
    wait_until(lambda: not answers(exposed, "/metrics"))
    path.write_text(text[text.index("[[server]]") :])
    pool.ok("reload")
    wait_until(lambda: not answers(moved, "/m"))


def answers(port: int, path: str) -> bool:
    try:
        reply: Reply = get(port, path)
    except OSError:
        return False
    return reply.status == 200


def test_slow_and_hostile_clients_keep_no_other_client_waiting(pool: RealPool, exposed: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", exposed), 60) for _ in range(40)]
    idle[-1].sendall(b"GET /metr")
    garbage = socket.create_connection(("127.0.0.1", exposed), 60)
    garbage.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
    assert garbage.recv(100).startswith(b"HTTP/1.1 400 ")
    long = socket.create_connection(("127.0.0.1", exposed), 60)
    long.sendall(b"GET /" + b"a" * 40_000)
    assert long.recv(100)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")
    asked(exposed)
    assert get(exposed, "/").status == 404
    pool.ok("list")
    for sock in (*idle, garbage, long):
        sock.close()


def test_head_without_end_is_cut_off_at_its_limit(exposed: int) -> None:
    with socket.socket() as endless:
        endless.settimeout(60)
        endless.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        endless.connect(("127.0.0.1", exposed))
        endless.sendall(b"GET /metrics HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < MAX_UNREAD_BYTES:
                sent += endless.send(b"a: b\r\n" * 1000)
        assert sent < MAX_UNREAD_BYTES, "nothing more is read"
    asked(exposed)


@pytest.mark.heavy
def test_an_address_that_is_taken_keeps_no_pool_from_starting_and_is_tried_again(pool: RealPool) -> None:
    port = claim_port()
    with socket.create_server(("127.0.0.1", port)):
        pool.write_hello("web")
        text = (pool.directory / "pool.toml").read_text()
        pool.write("pool.toml", f'[metrics]\nbind = "127.0.0.1:{port}"\n{text}')
        pool.ok("start")
        assert "metrics not served" in pool.ok("events", "--kind", "config", "-o", "json").stdout
    wait_until(lambda: answers(port, "/metrics"))


@pytest.mark.heavy
def test_without_a_supervisor_there_are_none(pool: RealPool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.write_hello("web")
    assert pool.run("metrics").code == 6
    pool.ok("start")
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(pool.runtime))
    client = poolctl.connect(pool.directory / "pool.toml")
    assert "poolctl_servers{" in client.metrics()
    (item,) = client.stats("web")["items"]
    assert item["stats"]["in_flight"] == 0
    (item,) = pool.ok("metrics", "-o", "json").json["items"]
    assert item["stats"]["requests_total"] == 0
