"""`poolctl wait`: its goals, its timeout, and a pool without a supervisor."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from tests.stand_in import Send, always, item, result

from .conftest import Command, Supervised


def test_wait_gives_up_when_its_time_is_over(poolctl: Command) -> None:
    said = poolctl("wait", "--timeout", "0.1", "-o", "json")
    assert said.code == 124
    assert [each["name"] for each in said.json["items"]] == ["users", "orders"]
    assert said.json["errors"][0]["error"] == "ErrorTimeout"


def test_wait_for_stopped_is_over_where_nothing_runs(poolctl: Command) -> None:
    assert poolctl("wait", "--for", "stopped").out == "2 servers stopped\n"
    assert poolctl("wait", "nobody", "--for", "stopped").code == 4
    assert poolctl("wait", "nobody").code == 4


def test_wait_goes_on_when_the_supervisor_goes_away_meanwhile(
    poolctl: Command, supervised: Supervised
) -> None:
    asked = []

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        asked.append(body["options"]["timeout"])
        return None if len(asked) < 3 else result(item("users"))

    with supervised(answer):
        assert poolctl("wait", "--timeout", "600").code == 0
    assert 500 < asked[2] < asked[0] <= 600


def test_wait_that_fails_prints_no_line(poolctl: Command, supervised: Supervised) -> None:
    late = {"code": 124, "error": "ErrorTimeout", "name": "a", "message": "is starting, not ready"}
    with supervised(always(item("a", ready=False, state="starting"), exit_code=124, errors=[late])):
        assert poolctl("wait") == (124, "", "error: a: is starting, not ready\n")


def test_wait_without_a_supervisor_begins_when_there_is_one(poolctl: Command, supervised: Supervised) -> None:
    with ExitStack() as stack:
        begin = threading.Timer(0.2, lambda: stack.enter_context(supervised(always(item("users")))))
        begin.start()
        assert poolctl("wait", "--timeout", "20s").out == "1 server ready\n"
        begin.join()


def test_wait_that_gives_up_names_the_goal(poolctl: Command) -> None:
    said = poolctl("wait", "--for", "healthy", "--timeout", "0")
    assert said.err == (
        "error: not healthy in time: no supervisor is running for this pool\n  hint: poolctl start\n"
    )
