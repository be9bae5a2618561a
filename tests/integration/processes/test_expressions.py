"""Regular expressions that backtrack without end, or need much memory, given to a running pool."""

from __future__ import annotations

import threading

import pytest

import poolctl
from tests.ports import claim_port
from tests.real_pool import WHO_APP, RealPool
from tests.slow_expression import HOSTILE_TEXT, SLOW_EXPRESSION

NAME = HOSTILE_TEXT
BOMB = "(?:(?:(?:a{9999}){9999}){9999}){9999}"


def test_a_slow_expression_is_refused_while_the_pool_goes_on(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_pool.write_hello(NAME, "web")
    real_pool.ok("start")
    supervisor = real_pool.info()["supervisor_pid"]
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(real_pool.runtime))
    client = poolctl.connect(real_pool.directory / "pool.toml")
    problems: list[BaseException] = []

    def select(expression: str) -> None:
        try:
            client.stop(selector={"name": [expression]})
        except poolctl.PoolParamError as error:
            problems.append(error)

    expressions = [SLOW_EXPRESSION, BOMB] * 4
    threads = [threading.Thread(target=select, args=(each,)) for each in expressions]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert client.ping(), "the supervisor answers meanwhile"
        assert [*client.events(lines=1)], "which are read in a thread"
    for thread in threads:
        thread.join()
    assert sorted({str(problem) for problem in problems}) == [
        f"name: invalid regular expression {BOMB!r}: too complicated",
        "name: the regular expression takes more than 0.25 s",
    ]
    assert len(problems) == len(expressions)
    for verb in ("list", "status", "stop", "show"):
        done = real_pool.run(verb, "--name", SLOW_EXPRESSION)
        assert (done.code, done.stdout) == (2, ""), done
        assert "avoid repeats within repeats" in done.stderr
    for bad, fix in (("(", "position 0"), ("[[:alpha:]]", "[A-Za-z]")):
        done = real_pool.run("list", "--name", bad)
        assert (done.code, fix in done.stderr) == (2, True), done
    assert real_pool.ok("list", "--name", "^w.b$", "-o", "name").stdout == "web\n"
    assert real_pool.ok("list", "--name", "^w.b$", "--not", "-o", "name").stdout == f"{NAME}\n"
    assert real_pool.info()["supervisor_pid"] == supervisor
    assert {item["state"] for item in real_pool.items().values()} == {"running"}
    real_pool.ok("stop")
    assert real_pool.processes() == {}


@pytest.mark.heavy
def test_a_slow_body_fails_the_probe_of_that_server_and_of_no_other(real_pool: RealPool) -> None:
    real_pool.write("app.py", WHO_APP)
    real_pool.write(
        "pool.toml",
        "[defaults]\napp = 'app:app'\nrestart = 'no'\nstart_timeout = '20s'\n"
        f"health.readiness = {{ http = '/', body = '{SLOW_EXPRESSION}', timeout = '30s' }}\n"
        + "".join(
            f"[[server]]\nname = '{name}'\nbind = '127.0.0.1:{claim_port()}'\nenv = {{ WHO = '{body}' }}\n"
            for name, body in (("good", "aaa"), ("slow", HOSTILE_TEXT), ("other", "a"), ("bad", "b"))
        ),
    )
    started = real_pool.run("start", "-o", "json")
    assert started.code == 1, started
    assert {item["name"]: item["ready"] for item in started.json["items"]} == {
        "good": True, "slow": False, "other": True, "bad": False,
    }  # fmt: skip
    problems = {error["name"]: error["message"] for error in started.json["errors"]}
    assert "the regular expression takes more than" in problems["slow"]
    assert f"a body without {SLOW_EXPRESSION!r}" in problems["bad"]
