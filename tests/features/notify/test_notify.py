"""A pool that tells people of its problems: through real receivers, over restarts of its supervisor and at its end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import poolctl
from poolctl.errors import PoolMonitorError
from tests.deadline import wait_until as _wait_until
from tests.features.notify.receivers import TOKEN, Receiver, receiver
from tests.needs import needs
from tests.processes import freeze
from tests.real_pool import RealPool

pytestmark = pytest.mark.integration

BROKEN = "raise RuntimeError('not today')\n"


def wait_until(condition: Callable[[], Any]) -> None:
    """As everywhere, with the patience that a crowded machine asks of what takes several processes."""
    _wait_until(condition, timeout_seconds=60)


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as server:
        yield server


def configured(pool: RealPool, *told: str, **keys: Any) -> None:
    """A pool of one server whose app is broken, and those who are told."""
    pool.write_hello("web", extra='restart = "no"')
    pool.write("hello.py", BROKEN)
    tables = "".join(f"[[notify]]\n{each}\n" for each in told)
    path = pool.directory / "pool.toml"
    path.write_text(f'[pool]\nname = "shop"\n{tables}{path.read_text()}')


def repaired(pool: RealPool) -> None:
    from tests.real_pool import HELLO_APP

    pool.write("hello.py", HELLO_APP)


def told(pool: RealPool) -> list[tuple[str, str]]:
    lines = pool.ok("events", "-o", "json", "--kind", "notify").stdout.splitlines()
    return [(event["event"], event["receiver"]) for event in map(json.loads, lines)]


@pytest.mark.capability
def test_every_receiver_is_notified_of_a_problem_and_its_end_and_no_secret_is_shown(
    real_pool: RealPool, there: Receiver
) -> None:
    script = "import sys; open('told.jsonl', 'a').write(sys.stdin.read())"
    real_pool.env |= {"TOKEN": TOKEN, "HOOK": "hook"}
    (real_pool.directory / "token").write_text(TOKEN)
    configured(
        real_pool,
        f'type = "ntfy"\nurl = "{there.url("/ntfy")}"\ntopic = "t"\ntoken_env = "TOKEN"\ndelay = "0.2s"',
        f'type = "gotify"\nurl = "{there.url("/gotify")}"\ntoken_file = "token"\ndelay = "0.2s"',
        f'type = "slack"\nurl = "{there.url("/slack")}/${{HOOK}}"\ndelay = "0.2s"',
        f'type = "webhook"\nurl = "{there.url("/hook?a=b")}"\ndelay = "0.2s"',
        f'type = "command"\ncommand = ["{sys.executable}", "-c", "{script}"]\ndelay = "0.2s"',
    )
    assert real_pool.run("start").code == 1
    wait_until(lambda: len(there.taken) == 4)
    by_kind = {each.kind: each for each in there.taken}
    assert by_kind.keys() == {"ntfy", "gotify", "slack", "webhook"}
    assert by_kind["ntfy"].title == "shop: web: failed"
    assert by_kind["ntfy"].text.startswith("web: starting → failed (")
    assert by_kind["webhook"].body["status"] == "problem"
    assert by_kind["webhook"].body["events"][0]["server"] == "web"
    mine = real_pool.directory / "told.jsonl"
    wait_until(mine.exists)
    repaired(real_pool)
    real_pool.ok("start")
    wait_until(lambda: len(there.taken) == 8 and len(mine.read_text().splitlines()) == 2)
    assert {each.text for each in there.taken[4:]} == {"web: running again after 0s"} or all(
        each.text.startswith("web: running again after ") for each in there.taken[4:]
    )
    assert json.loads(mine.read_text().splitlines()[1])["status"] == "resolved"
    wait_until(lambda: len(told(real_pool)) == 10)
    assert {event for event, _ in told(real_pool)} == {"sent"}
    shown = [
        real_pool.ok(*words).stdout
        for words in (["config"], ["config", "-o", "json"], ["show", "-o", "json"])
    ]
    shown.append(real_pool.ok("events", "-o", "json").stdout)
    assert not [text for text in shown if TOKEN in text or "/slack/hook" in text]
    assert "/slack/${HOOK}" in shown[0]


@pytest.mark.heavy
def test_message_that_cannot_be_sent_is_sent_by_the_next_supervisor(
    real_pool: RealPool, there: Receiver
) -> None:
    configured(real_pool, f'type = "slack"\nurl = "{there.url("/slack/hook")}"\ndelay = 0')
    there.refusals += [(503, {})] * 1000
    real_pool.run("start")
    wait_until(lambda: told(real_pool) == [("delayed", "slack")])
    os.kill(real_pool.info()["supervisor_pid"], signal.SIGKILL)
    there.refusals.clear()
    wait_until(lambda: there.taken)
    assert "web: starting → failed" in there.taken[0].text
    wait_until(lambda: ("sent", "slack") in told(real_pool))
    repaired(real_pool)
    real_pool.ok("start")
    wait_until(lambda: len(there.taken) == 2)
    assert there.taken[1].text.startswith("web: running again after ")


@pytest.mark.heavy
def test_health_that_came_back_while_there_was_no_supervisor_is_reported(
    real_pool: RealPool, there: Receiver
) -> None:
    configured(
        real_pool, f'type = "slack"\nurl = "{there.url("/slack/hook")}"\ndelay = 0\nevents = ["health"]'
    )
    repaired(real_pool)
    text = (real_pool.directory / "pool.toml").read_text()
    (real_pool.directory / "pool.toml").write_text(text.replace('["health"]', '["health", "pool"]'))
    probe = '{ exec = ["test", "-e", "well"], interval = "100ms", fall_count_ko = 1 }'
    with (real_pool.directory / "pool.toml").open("a") as file:
        file.write(f"health = {{ readiness = {probe} }}\n")
    well = real_pool.write("well", "")
    real_pool.ok("start")
    well.unlink()
    wait_until(lambda: there.taken and there.taken[-1].text.startswith("web: ko: "))
    keeper, supervisor = (real_pool.info()[f"{name}_pid"] for name in ("keeper", "supervisor"))
    freeze(keeper)  # it would start another one at once
    os.kill(supervisor, signal.SIGKILL)
    well.touch()
    os.kill(keeper, signal.SIGCONT)
    # Each may come in a message of its own, in either order.
    for begin in ("web: ok again after ", "supervisor started: took over 1 worker"):
        wait_until(
            lambda begin=begin: any(
                line.startswith(begin) for each in there.taken for line in each.text.splitlines()
            )
        )


def test_recovery_is_notified_as_one(real_pool: RealPool, there: Receiver) -> None:
    configured(
        real_pool,
        f'type = "slack"\nurl = "{there.url("/slack/hook")}"\ndelay = 0\nevents = ["recovery"]',
    )
    repaired(real_pool)
    probe = '{ exec = ["test", "!", "-e", "ill"], interval = "100ms", fall_count_ko = 1 }'
    with (real_pool.directory / "pool.toml").open("a") as file:
        file.write(f"health = {{ liveness = {probe} }}\nstop_timeout = 1\n")
    real_pool.ok("start")
    ill = real_pool.write("ill", "")
    wait_until(lambda: there.taken)
    ill.unlink()
    assert there.taken[0].text.startswith("web: recovered: ")
    assert ": restarted within " in there.taken[0].text


def test_receivers_change_with_a_reload_and_stopping_the_pool_sends_what_waits(
    real_pool: RealPool, there: Receiver
) -> None:
    configured(real_pool)
    repaired(real_pool)
    real_pool.ok("start")
    text = (real_pool.directory / "pool.toml").read_text()
    table = f'[[notify]]\ntype = "slack"\nurl = "{there.url("/slack/hook")}"\ndelay = "1h"\n'
    (real_pool.directory / "pool.toml").write_text(table + text.replace('"no"', '"no"\nmandatory = true'))
    changes = real_pool.ok("reload", "-o", "json").json["changes"]
    assert (changes[0]["name"], changes[0]["keys"]) == ("[notify]", ["notify"])
    assert real_pool.ok("reload", "-o", "json").json["changes"] == []
    pids = real_pool.items()["web"]["pids"]
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: there.taken)
    assert "killed by SIGKILL" in there.taken[0].text


@needs("doctor")
def test_test_notification_reports_success_and_failure_of_each_receiver(
    real_pool: RealPool, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tested() -> dict[str, str]:
        """The status of each result of the test notifications, by its message."""
        done = real_pool.run("doctor", "--notify", "-o", "json")
        assert done.code == 1, done
        return {each["message"]: each["status"] for each in done.json["items"] if each["check"] == "notify"}

    assert tested() == {"no pool was found": "problem"}
    configured(real_pool)
    assert tested() == {"no [[notify]] receivers are configured": "problem"}
    configured(
        real_pool,
        f'type = "slack"\nurl = "{there.url("/slack/hook")}"',
        'name = "mine"\ntype = "command"\ncommand = ["false"]',
    )
    for running in (False, True):
        assert tested() == {"slack: sent": "ok", "mine: false exited with status 1": "problem"}
        if not running:
            real_pool.run("start", "--no-wait")
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(real_pool.runtime))
    client = poolctl.connect(real_pool.directory / "pool.toml")
    assert client.notify_test("slack")["receivers"] == [{"name": "slack", "ok": True, "message": ""}]
    with pytest.raises(PoolMonitorError, match="mine: false exited"):
        client.notify_test()
    assert {each.text for each in there.taken if "this is a test" in each.title} == {
        "If you can read this, problems will be reported here."
    }
