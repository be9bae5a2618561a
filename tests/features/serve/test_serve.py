"""`poolctl serve`: one server as one process, as a container runs it."""

from __future__ import annotations

import signal
import socket
import subprocess
from typing import Any

import pytest

from tests.http_get import Reply
from tests.real_pool import HELLO_APP


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.integration
def test_after_the_delay_it_drains(serve: Any, until: Any) -> None:
    web = serve("--stop-delay", "50ms", drain_timeout="10m", stop_timeout="100ms")
    until(lambda: web.health() == (200, "ok"))
    replies: list[Reply] = []
    asking = web.get_later("/slow", replies)
    until(web.is_asked)
    web.process.send_signal(signal.SIGTERM)
    until(lambda: refuses(web.port))
    with pytest.raises(subprocess.TimeoutExpired):  # it would end if this were a stop
        web.process.wait(1)
    web.touch("answer")
    asking.join(60)
    assert [reply.status for reply in replies] == [200]
    assert web.process.wait(60) == 0


@pytest.mark.heavy_variants
@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_import_ends_it(serve: Any, until: Any, number: signal.Signals) -> None:
    web = serve(waits=True)
    until(lambda: web.health()[0] == 503)
    web.process.send_signal(number)
    assert web.process.wait(60) == 0


@pytest.mark.integration
def test_signal_writes_stacks_during_import_and_while_loop_is_blocked(serve: Any, until: Any) -> None:
    web = serve(waits=True)
    until(web.is_importing)

    def show(function: str) -> None:
        web.process.send_signal(signal.SIGURG)
        while "application.py" not in (line := web.process.stderr.readline()) or function not in line:
            assert line, "it has ended"

    show("<module>")
    web.touch("imported")
    until(lambda: web.health() == (200, "ok"))
    replies: list[Reply] = []
    asking = web.get_later("/block", replies)
    until(web.is_asked)
    show("app")
    web.touch("answer")
    asking.join(60)
    assert [reply.status for reply in replies] == [200]


FAILING = HELLO_APP.replace(
    '"type": kind + ".complete"', '"type": "lifespan.startup.failed", "message": "no database"'
)
MISSING = "cannot import 'application:app': ModuleNotFoundError: No module named 'missing_library'"


@pytest.mark.heavy_variants
@pytest.mark.integration
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import missing_library", MISSING),
        ("app = 5", "application:app is no ASGI or WSGI application but 5"),
        (FAILING, "the application did not start"),
    ],
    ids=["import", "attribute", "lifespan"],
)
def test_last_line_is_the_reason_for_a_failed_start(serve: Any, text: str, reason: str) -> None:
    web = serve(text=text)
    _, output = web.process.communicate(timeout=60)
    assert web.process.returncode == 1, output
    assert output.splitlines()[-1] == f"poolctl: web: {reason}"
