"""Secrets of a real pool: masked wherever they are shown, whole where they are used and where they are saved."""

from __future__ import annotations

import json

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.integration.processes.test_withheld_variables import REPORT
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool
from tests.terminal import Terminal

SECRETS = ("hunter2", "p4ss", "t0ken")
DRIVES = "print('\\x1b]0;owned\\x07\\x1b[31mred\\x1b[0m', flush=True)\n"


def test_secrets_are_masked_wherever_they_are_shown_and_reveal_shows_them(real_pool: RealPool) -> None:
    port = claim_port()
    real_pool.env["DB_SECRET"] = "hunter2"
    real_pool.write("report.py", REPORT)
    env = {"DB_PASSWORD": "${DB_SECRET}", "URL": "http://u:p4ss@h/", "LEVEL": "info"}
    text = server("web", bind=f"127.0.0.1:{port}", app="report:app", env=env, labels={"api_key": "t0ken"})
    real_pool.write("pool.toml", text)
    real_pool.ok("start")
    found = get(port).json()["environ"]
    assert (found["DB_PASSWORD"], found["URL"]) == ("hunter2", "http://u:p4ss@h/")
    added = (
        "add",
        "more",
        "--bind",
        f"127.0.0.1:{claim_port()}",
        "--app",
        "report:app",
        "--set",
        "env.X_TOKEN=${DB_SECRET}",
    )
    done = real_pool.run(*added, "--save", "--dry-run")
    assert (done.code, 'X_TOKEN = "${DB_SECRET}"' in done.stdout) == (3, True), str(done)
    real_pool.ok(*added, "--save")
    saved = (real_pool.directory / "pool.toml").read_text()
    assert 'X_TOKEN = "${DB_SECRET}"' in saved
    assert "********" not in saved
    for command in (
        ("show",),
        ("show", "-o", "json"),
        ("config",),
        ("config", "-o", "json"),
        ("events", "-o", "json"),
    ):
        shown = real_pool.ok(*command).stdout
        assert not [secret for secret in SECRETS if secret in shown], command
        if command[0] != "events":
            assert "********" in shown
            assert "info" in shown
            revealed = real_pool.ok(*command, "--reveal").stdout
            assert [secret for secret in SECRETS if secret in revealed] == list(SECRETS), command
    assert real_pool.ok("config").stdout.startswith("# ******** stands for secrets, which --reveal shows\n")
    real_pool.ok("stop")
    assert "hunter2" not in real_pool.ok("show").stdout
    assert "hunter2" in real_pool.ok("show", "--reveal").stdout


def test_control_characters_of_servers_are_escaped_on_terminals_and_kept_in_pipes(
    real_pool: RealPool,
) -> None:
    real_pool.write_hello("web")
    real_pool.write("hello.py", DRIVES + HELLO_APP)
    real_pool.ok("start")
    wait_until(lambda: "red" in real_pool.ok("logs").stdout)
    for options in ([], ["--raw"]):
        with Terminal(real_pool, "logs", *options) as terminal:
            terminal.until(lambda shown: "\\x1b]0;owned\\x07" in shown)
            terminal.until(lambda shown: "red" in shown)
            terminal.end()
            assert "\x1b]" not in terminal.shown
            assert "\x07" not in terminal.shown
        assert "\x1b]0;owned\x07\x1b[31mred\x1b[0m" in real_pool.ok("logs", *options).stdout
    lines = real_pool.ok("logs", "-o", "json").stdout.splitlines()
    assert any("\x1b]0;owned\x07" in json.loads(line)["line"] for line in lines)
