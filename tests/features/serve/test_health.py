"""The health address of a served app, from its import to its end."""

from __future__ import annotations

import http.client
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.features.serve.test_serve import refuses
from tests.http_get import Reply, get


@pytest.mark.integration
@pytest.mark.capability
def test_health_is_known_from_the_import_to_the_end_and_no_request_is_lost(serve: Any, until: Any) -> None:
    web = serve("--stop-delay", "10m", waits=True)
    until(lambda: web.health() == (503, "the application is starting"))
    assert web.health("/health/live") == (200, "ok"), "a start that takes long is limited elsewhere"
    web.touch("imported")
    until(lambda: web.health() == (200, "ok"))
    assert get(web.port).text == str(web.process.pid), "one process"
    replies: list[Reply] = []
    asking = web.get_later("/slow", replies)
    until(web.is_asked)
    kept = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    kept.request("GET", "/")
    assert kept.getresponse().read() == str(web.process.pid).encode()
    web.process.send_signal(signal.SIGTERM)
    until(lambda: web.health() == (503, "the server is stopping"))
    assert get(web.port).status == 200, "it serves on until the delay is over"
    kept.request("GET", "/")
    assert kept.getresponse().read() == str(web.process.pid).encode()
    assert web.health("/health/live") == (200, "ok")
    web.process.send_signal(signal.SIGTERM)  # ends the delay
    until(lambda: refuses(web.port))
    web.touch("answer")
    asking.join(60)
    assert [reply.status for reply in replies] == [200], "what was in progress is completed"
    assert web.process.wait(60) == 0
    kept.close()


@pytest.mark.integration
def test_probes_of_the_server_decide(serve: Any, until: Any) -> None:
    health = {
        "startup": {"http": "/check-startup"},
        "readiness": {"http": "/check-readiness", "status": "200-299"},
        "liveness": {"http": "/check-liveness"},
    }
    web = serve(health=health, waits=True)
    for kind, status in (("startup", 500), ("readiness", 404), ("liveness", 500)):
        web.touch(f"check-{kind}", str(status))
    web.touch("imported")
    until(lambda: web.health() == (503, "GET /check-startup: status 500"))
    assert web.health("/health/live") == (200, "ok"), "the other probes begin after the startup probe"
    web.touch("check-startup", "200")
    assert web.health() == (503, "GET /check-readiness: status 404")
    web.touch("check-startup", "500")
    web.touch("check-readiness", "204")
    assert web.health() == (200, "ok"), "the startup probe has to succeed once"
    assert web.health("/health/live") == (503, "GET /check-liveness: status 500")
    web.touch("check-liveness", "200")
    assert web.health("/health/live") == (200, "ok")


@pytest.mark.integration
def test_blocked_event_loop_is_neither_ready_nor_alive(serve: Any, until: Any) -> None:
    web = serve()
    until(lambda: web.health() == (200, "ok"))
    asking = web.get_later("/block", [])
    until(web.is_asked)
    assert web.health() == (503, "no answer within 2s")
    assert web.health("/health/live") == (503, "no answer within 2s")
    web.touch("answer")
    asking.join(60)
    assert web.health() == (200, "ok")


@pytest.mark.integration
def test_probe_needs_no_certificate_of_a_server_with_tls(serve: Any, until: Any, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    web = serve(tls={"cert": str(cert), "key": str(key)}, health="/check")
    web.touch("check", "200")
    until(lambda: web.health() == (200, "ok"))
    assert get(f"https://127.0.0.1:{web.port}").status == 200
    web.touch("check", "503")
    assert web.health() == (503, "GET /check: status 503")


@pytest.mark.integration
def test_other_paths_and_methods_are_refused(serve: Any, until: Any) -> None:
    web = serve()
    until(lambda: web.health()[0])
    assert web.health("/") == (404, "there are /health and /health/live")
    connection = http.client.HTTPConnection("127.0.0.1", web.health_port, timeout=60)
    connection.request("POST", "/health")
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("allow")) == (405, "GET, HEAD")
    assert reply.read() == b"only GET and HEAD are answered\n"
    connection.close()
