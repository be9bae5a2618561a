from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.cli.supervisor_requests import DELAY_SECONDS
from poolctl.control.pool_paths import pool_key
from tests.deadline import wait_until
from tests.http_get import get
from tests.real_pool import RealPool
from tests.stand_in import always, item, stand_in
from tests.terminal import Terminal

STUBBORN = """
import signal, socket, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.socket(fileno=3)
while True:
    listener.accept()[0].close()
"""


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("users", "orders")
    return real_pool


def pid_in(file: Path) -> str:
    return str(wait_until(lambda: file.exists() and file.read_text().strip()))


def test_table_has_colours_unless_they_are_turned_off(pool: RealPool) -> None:
    with Terminal(pool, "list") as terminal:
        assert terminal.end() == 0
        assert "\x1b[1mNAME" in terminal.shown
    with Terminal(pool, "list", env={"NO_COLOR": "1"}) as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.shown


def test_list_ends_with_the_gateway_on_a_terminal_only(pool: RealPool) -> None:
    gateway = {
        "state": "running", "problem": "port 443 is in use", "pid": 7, "addresses": ["http://127.0.0.1:80"],
        "routes": 2, "uptime_seconds": 0.0, "restarts": 0,
    }  # fmt: skip
    place = pool.runtime / pool_key(str(pool.directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    with stand_in(place / "control.sock", always(item("users"), gateway=gateway)):
        with Terminal(pool, "list", env={"COLUMNS": "60"}) as terminal:
            assert terminal.end() == 0
        lines = terminal.shown.splitlines()
        assert lines[1].split()[0] == "users"
        assert lines[-4:] == [
            "",
            "[gateway] running, http://127.0.0.1:80, 2 routes, pid 7,",
            "  up 0.0s",
            "  port 443 is in use",
        ]
        assert "gateway" not in pool.ok("list").stdout


@pytest.mark.parametrize("args", [("reload", "--dry-run"), ("reload",)])
def test_plan_of_a_reload_has_colours_on_a_terminal(pool: RealPool, args: tuple[str, ...]) -> None:
    place = pool.runtime / pool_key(str(pool.directory / "pool.toml"))
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    changes = [{"change": "add", "name": "new", "bind": "127.0.0.1:1"}]
    changes.append({"change": "remove", "name": "old\x1b[2J", "bind": "127.0.0.1:2"})
    with stand_in(place / "control.sock", always(changes=changes)), Terminal(pool, *args) as terminal:
        assert terminal.end() == 0
    assert "\x1b[32m+ new 127.0.0.1:1\x1b[0m\r\n" in terminal.shown
    assert "\x1b[31m- old\\x1b[2J 127.0.0.1:2\x1b[0m\r\n" in terminal.shown


def test_run_says_where_everything_is_and_shows_requests(
    pool: RealPool, free_port: Callable[[], int]
) -> None:
    port = free_port()
    pool.append(f'\n[gateway]\nbind = "127.0.0.1:{port}"\n[[route]]\nto = "users"\n')
    with Terminal(pool, "run") as terminal:
        terminal.until(lambda shown: "Ctrl-C to stop" in shown)
        (users,) = re.findall(r"^users   http://127\.0\.0\.1:(\d+)\r$", terminal.shown, re.MULTILINE)
        assert "\norders  http://127.0.0.1:" in terminal.shown
        assert (
            f"the gateway serves http://127.0.0.1:{port}\r\n2 servers ready, Ctrl-C to stop" in terminal.shown
        )
        get(int(users), "/shown")
        terminal.until(lambda shown: '"GET /shown HTTP/1.1" 200' in shown)
        terminal.press("\x03")
        assert terminal.end() == 130


@pytest.mark.heavy_variants
@pytest.mark.parametrize("how", ["run", "run --debug users"])
def test_run_without_access_log_shows_no_requests_whatever_the_file_says(pool: RealPool, how: str) -> None:
    pool.append("[defaults]\nhttp = { access_log = true }\n")
    with Terminal(pool, *how.split(), "--no-access-log") as terminal:
        terminal.until(lambda shown: "Ctrl-C stop" in shown or "Ctrl-C to stop" in shown)
        terminal.until(lambda shown: "startup complete" in shown)
        (port,) = re.findall(r"users (?:on)? *http://127\.0\.0\.1:(\d+)", terminal.shown)
        get(int(port), "/hidden")
        if "--debug" not in how:
            shown = pool.ok("show", "users").stdout
            assert re.search(r"http\.access_log = false +# run --no-access-log\n", shown), shown
        terminal.press("\x03")
        assert terminal.end() == 130
    assert "/hidden" not in terminal.shown
    assert "/hidden" not in pool.ok("logs").stdout


def test_progress_of_a_slow_command_is_shown_on_a_terminal(pool: RealPool) -> None:
    app = pool.directory / "hello.py"
    app.write_text("import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n" + app.read_text())
    with Terminal(pool, "start") as terminal:
        terminal.until(lambda shown: "waiting for" in shown)
        (pool.directory / "go").touch()
        assert terminal.end() == 0
    assert "2 servers ready" in terminal.shown


def test_run_shows_no_progress_between_the_lines_of_the_servers(pool: RealPool) -> None:
    app = pool.directory / "hello.py"
    with Terminal(pool, "run", "--watch") as terminal:
        terminal.until(lambda shown: "Ctrl-C to stop" in shown)
        # Longer than it takes until progress is shown.
        app.write_text(f"import time\ntime.sleep({3 * DELAY_SECONDS})\n{app.read_text()}")
        terminal.until(lambda shown: "~ users: code" in shown)
        terminal.press("\x03")
        assert terminal.end() == 130
    assert "users, orders: hello.py changed, restarting\r\n" in terminal.shown
    assert "waiting for" not in terminal.shown


def test_ctrl_c_ends_a_waiting_command_without_a_word(pool: RealPool) -> None:
    pool.ok("start")
    with Terminal(pool, "wait", "--for", "stopped") as terminal:
        terminal.until(lambda shown: "wait" in shown)
        terminal.press("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.shown
    assert "error" not in terminal.shown
    with Terminal(pool, "logs", "-f") as terminal:
        terminal.until(lambda shown: "startup complete" in shown)
        terminal.press("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.shown


def test_ctrl_c_twice_kills_what_does_not_want_to_end(pool: RealPool) -> None:
    pool.write("stubborn.py", STUBBORN)
    pool.write(
        "pool.toml",
        f'[[server]]\nname = "a"\nbind = "127.0.0.1:{pool.ports["users"]}"\n'
        f'command = ["{sys.executable}", "stubborn.py"]\nstop_timeout = "60s"\n',
    )
    with Terminal(pool, "run") as terminal:
        terminal.until(lambda shown: "1 server ready" in shown)
        terminal.press("\x03")
        wait_until(lambda: pool.items()["a"]["state"] == "stopping")
        terminal.press("\x03")
        assert terminal.end() == 130
    assert "killing the remaining processes" in terminal.shown
    assert pool.processes() == {}


def test_ctrl_c_reaches_the_users_command_once(pool: RealPool) -> None:
    script = "trap 'echo got-it' INT; echo $$ > pid; while [ ! -e go ]; do sleep 0.02; done; exit 5"
    with Terminal(pool, "run", "--", "sh", "-c", script) as terminal:
        pid_in(pool.directory / "pid")
        terminal.press("\x03")
        terminal.until(lambda shown: "got-it" in shown)
        (pool.directory / "go").touch()
        assert terminal.end() == 5
    assert terminal.shown.count("got-it") == 1
    assert terminal.shown.rstrip().endswith("the pool has stopped")
    assert pool.processes() == {}


def test_the_users_command_reads_from_the_terminal(pool: RealPool) -> None:
    with Terminal(pool, "run", "--", "sh", "-c", "echo asks; read x; echo read-$x; tty >&2") as terminal:
        terminal.until(lambda shown: "asks" in shown)
        terminal.press("word\n")
        assert terminal.end() == 0
    assert "read-word" in terminal.shown
    assert "/dev/" in terminal.shown


def test_ctrl_z_suspends_the_users_command_with_run_and_fg_continues_both(pool: RealPool) -> None:
    script = "echo asks; read x; echo read-$x; exit 5"
    shell = f"set -m; poolctl run -- sh -c '{script}'; echo suspended $?; fg; echo ended $?"
    with Terminal(pool, shell=shell) as terminal:
        terminal.until(lambda shown: "asks" in shown)
        terminal.press("\x1a")
        terminal.until(lambda shown: "suspended 148" in shown)
        terminal.press("word\n")
        assert terminal.end() == 0
    assert "read-word" in terminal.shown
    assert "the pool has stopped" in terminal.shown
    assert terminal.shown.rstrip().endswith("ended 5")
    assert pool.processes() == {}


def test_ctrl_c_before_the_users_command_keeps_it_from_running(pool: RealPool) -> None:
    app = pool.directory / "hello.py"
    app.write_text("import time\nopen('importing', 'w').close()\ntime.sleep(60)\n" + app.read_text())
    with Terminal(pool, "run", "--", "touch", "ran") as terminal:
        wait_until((pool.directory / "importing").exists)
        terminal.press("\x03")
        assert terminal.end() == 130
    assert not (pool.directory / "ran").exists()
    assert pool.processes() == {}


def test_init_asks_whether_to_write_an_application(pool: RealPool) -> None:
    with Terminal(pool, "init", "fresh") as terminal:
        terminal.until(lambda shown: "[Y/n]" in shown)
        terminal.press("\n")
        assert terminal.end() == 0
    assert (pool.directory / "fresh" / "hello.py").exists()
    with Terminal(pool, "init", "bare") as terminal:
        terminal.until(lambda shown: "[Y/n]" in shown)
        terminal.press("maybe\n")
        terminal.until(lambda shown: "Please answer yes or no." in shown and shown.count("[Y/n]") == 2)
        terminal.press("n\n")
        assert terminal.end() == 0
    assert not (pool.directory / "bare" / "hello.py").exists()
    with Terminal(pool, "init", "bare") as terminal:  # what is refused in any case is not asked about
        assert terminal.end() == 8
        assert "[Y/n]" not in terminal.shown
