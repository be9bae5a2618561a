"""Commands that run once per server: before its first worker, and after its last one."""

from __future__ import annotations

import json
import os
import signal
import sys
import venv
from collections.abc import Callable
from typing import Any

import pytest

from tests.http_get import get
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import RealPool

Until = Callable[..., Any]

# Records its argument and part of its environment; a second argument is its exit status.
HOOK = """
import os, sys

name, *status = sys.argv[1:]
with open("notes", "a") as notes:
    notes.write(name + "\\n")
with open(f"{name}.json", "w") as file:
    import json
    json.dump({"env": dict(os.environ), "cwd": os.getcwd(), "uid": os.getuid(), "umask": os.umask(0)}, file)
print("the hook", name)
sys.exit(int(status[0]) if status else 0)
"""


def words(*arguments: str) -> str:
    return json.dumps([sys.executable, *arguments])


def write(pool: RealPool, hooks: str, *, name: str = "web", extra: str = "") -> int:
    """The port of the only server."""
    pool.write("hook.py", HOOK)
    return pool.write_hello(name, extra=f"{extra}\nhooks = {{ {hooks} }}")[name]


BOTH = f"before_start = {words('hook.py', 'before')}, after_stop = {words('hook.py', 'after')}"


def notes(pool: RealPool) -> list[str]:
    path = pool.directory / "notes"
    return path.read_text().split() if path.exists() else []


def seen(pool: RealPool, hook: str) -> dict[str, Any]:
    """The hook's recorded environment."""
    found: dict[str, Any] = json.loads((pool.directory / f"{hook}.json").read_text())
    return found


@pytest.mark.capability
def test_hooks_run_once_for_an_ordered_start_and_stop_whatever_the_number_of_workers(
    real_pool: RealPool, until: Until
) -> None:
    port = write(real_pool, BOTH, extra='workers = 3\numask = "0027"\nenv = { A = "of the server" }')
    real_pool.ok("start")
    assert notes(real_pool) == ["before"]
    assert len(real_pool.items()["web"]["pids"]) == 3
    before = seen(real_pool, "before")
    env = before["env"]
    assert (env["HOST"], env["PORT"], env["A"]) == ("127.0.0.1", str(port), "of the server")
    assert "POOLCTL_INDEX" not in env, "it is no worker"
    assert (before["cwd"], before["umask"]) == (str(real_pool.directory), 0o027)
    real_pool.ok("start")
    real_pool.ok("restart")
    real_pool.ok("scale", "web", "2")
    assert notes(real_pool) == ["before"], "a restart, a scale and a server that runs already run none"
    real_pool.ok("stop", "web")
    real_pool.ok("stop", "web")
    assert notes(real_pool) == ["before", "after"]
    real_pool.ok("restart", "web")
    assert notes(real_pool) == ["before", "after", "before"], "a restart of a stopped server starts it"
    until(lambda: "the hook after" in real_pool.ok("logs", "web").stdout)
    log = real_pool.ok("logs", "web").stdout
    assert log.index("the hook before") < log.index("Application startup complete")
    real_pool.ok("stop")
    assert notes(real_pool) == ["before", "after", "before", "after"], "the end of the pool is a stop"


def test_programs_are_those_of_the_environment_beside_the_file(real_pool: RealPool) -> None:
    environment = real_pool.directory / ".venv"
    venv.create(environment, symlinks=True, with_pip=False)
    note = environment / "bin" / "note"
    note.write_text('#!/bin/sh\necho "$VIRTUAL_ENV $(command -v python)" > "$1"\n')
    note.chmod(0o755)
    port = claim_port()
    real_pool.write(
        "pool.toml",
        f"""
[[server]]
name = "migrate"
command = ["note", "job"]
job = true
[[server]]
name = "web"
command = ["python", "-m", "http.server", "--bind", "{{host}}", "{{port}}"]
bind = "127.0.0.1:{port}"
hooks = {{ before_start = ["note", "hook"] }}
health = {{ readiness = {{ exec = ["note", "probe"] }} }}
[[server]]
name = "own"
command = ["sh", "-c", "command -v note || echo none > own"]
job = true
env = {{ PATH = "/usr/bin:/bin" }}
""",
    )
    real_pool.ok("validate")
    real_pool.ok("start")
    expected = f"{environment} {environment}/bin/python\n"
    for each in ("job", "hook", "probe"):
        assert (real_pool.directory / each).read_text() == expected, each
    assert (real_pool.directory / "own").read_text() == "none\n", "env has a PATH"
    assert get(port).status == 200


@pytest.mark.slow
def test_failed_before_start_fails_the_start_with_its_last_lines(real_pool: RealPool) -> None:
    script = "print('one'); print('no route to the database'); raise SystemExit(3)"
    port = write(
        real_pool,
        f"before_start = {words('-c', script)}, after_stop = {words('hook.py', 'after')}",
        extra='restart = "always"',
    )
    done = real_pool.run("start")
    assert done.code == 1
    assert "web: hooks.before_start exited with status 3: no route to the database\n    one" in done.stderr
    assert "poolctl logs web" in done.stderr
    item = real_pool.items()["web"]
    assert (item["state"], item["pids"], item["restarts"]) == ("failed", [], 0), "it is not tried again"
    with pytest.raises(ConnectionRefusedError):
        get(port)
    assert real_pool.run("status").code == 3
    real_pool.ok("stop")
    assert notes(real_pool) == [], "what was not prepared is not cleaned up"


@pytest.mark.slow
def test_before_start_that_cannot_be_found_fails_the_start(real_pool: RealPool) -> None:
    write(real_pool, 'before_start = ["no-such-program"]')
    checked = real_pool.run("validate")
    assert checked.code == 5
    assert "hooks.before_start[0]: 'no-such-program' is not there" in checked.stdout
    done = real_pool.run("start")
    assert done.code == 1
    assert "web: hooks.before_start exited with status 127: cannot run 'no-such-program'" in done.stderr


# A hook that does not end, with a child that ignores signals.
TREE = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    open("child", "w").write(str(os.getpid()))
while True:
    time.sleep(60)
"""


def child(pool: RealPool) -> int:
    path = pool.directory / "child"
    return int(path.read_text() or 0) if path.exists() else 0


@pytest.mark.slow
def test_a_late_hook_is_killed_with_its_child_processes(real_pool: RealPool, until: Until) -> None:
    real_pool.write("tree.py", TREE)
    write(real_pool, f"before_start = {words('tree.py')}", extra='start_timeout = "3s"')
    done = real_pool.run("start")
    assert done.code == 1
    assert "web: hooks.before_start had not ended after 3s, and was killed" in done.stderr
    assert "start_timeout says how long it may take" in done.stderr
    until(lambda: not is_alive(child(real_pool)))
    write(real_pool, f"after_stop = {words('tree.py')}", extra='stop_timeout = "3s"')
    (real_pool.directory / "child").unlink(missing_ok=True)  # of one that was killed at once
    real_pool.ok("reload")
    real_pool.ok("start")
    done = real_pool.ok("stop", "web")
    assert "warning: web: hooks.after_stop had not ended after 3s, and was killed" in done.stderr
    assert real_pool.items()["web"]["state"] == "stopped"
    until(lambda: not is_alive(child(real_pool)))


@pytest.mark.slow
def test_failed_after_stop_is_a_warning_and_an_event_of_a_stop_that_is_done(real_pool: RealPool) -> None:
    write(real_pool, f"after_stop = {words('hook.py', 'after', '4')}")
    real_pool.ok("start")
    done = real_pool.ok("stop", "web")
    assert "warning: web: hooks.after_stop exited with status 4: the hook after" in done.stderr
    events = [json.loads(line) for line in real_pool.ok("events", "-o", "json").stdout.splitlines()]
    (event,) = [each for each in events if each["event"] == "hook failed"]
    assert (event["server"], event["cause"], event["message"]) == (
        "web", "stop web", "hooks.after_stop exited with status 4: the hook after",
    )  # fmt: skip


@pytest.mark.slow
def test_crash_runs_no_hook(real_pool: RealPool, until: Until) -> None:
    write(real_pool, BOTH)
    real_pool.ok("start")
    (pid,) = real_pool.items()["web"]["pids"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: (item := real_pool.items()["web"])["ready"] and item["pids"] != [pid])
    assert notes(real_pool) == ["before"]


@pytest.mark.heavy
@pytest.mark.slow
def test_hooks_of_a_sleeping_server_run_at_its_start_and_not_when_a_request_wakes_it(
    real_pool: RealPool, until: Until
) -> None:
    port = write(real_pool, BOTH, extra='scale = { min = 0, idle = "200ms" }')
    real_pool.ok("start")
    assert (real_pool.items()["web"]["state"], notes(real_pool)) == ("sleeping", ["before"])
    for _ in range(2):
        assert get(port).status == 200
        until(lambda: real_pool.items()["web"]["state"] == "sleeping")
    assert notes(real_pool) == ["before"]
    real_pool.ok("stop", "web")
    assert notes(real_pool) == ["before", "after"]


@pytest.mark.heavy
@pytest.mark.slow
def test_reload_runs_the_hooks_of_servers_that_come_and_go(real_pool: RealPool) -> None:
    write(real_pool, BOTH)
    text = (real_pool.directory / "pool.toml").read_text()
    real_pool.write_hello("other")
    other = (real_pool.directory / "pool.toml").read_text()
    real_pool.ok("start")
    real_pool.write("pool.toml", other + text)
    real_pool.ok("reload")
    assert notes(real_pool) == ["before"]
    changed = text.replace("before_start = [", 'before_start = ["env", ')
    real_pool.write("pool.toml", other + changed)
    pids = real_pool.items()["web"]["pids"]
    real_pool.ok("reload")
    assert real_pool.items()["web"]["pids"] == pids, "other hooks need no other worker"
    assert notes(real_pool) == ["before"]
    real_pool.write("pool.toml", other)
    real_pool.ok("reload")
    assert notes(real_pool) == ["before", "after"]


@pytest.mark.slow
def test_stop_ends_a_before_start_that_runs_and_no_worker_is_started(
    real_pool: RealPool, until: Until
) -> None:
    real_pool.write("tree.py", TREE)
    hooks = f"before_start = {words('tree.py')}, after_stop = {words('hook.py', 'after')}"
    write(real_pool, hooks, extra='stop_timeout = "1s"')
    real_pool.ok("start", "--no-wait")
    until(lambda: child(real_pool))
    assert real_pool.items()["web"]["state"] == "starting"
    real_pool.ok("stop", "web")
    until(lambda: not is_alive(child(real_pool)))
    assert (real_pool.items()["web"]["state"], notes(real_pool)) == ("stopped", [])


@pytest.mark.slow
def test_hooks_of_a_command_run_around_it_and_wait_for_its_dependencies(
    real_pool: RealPool, until: Until
) -> None:
    real_pool.write("hook.py", HOOK)
    both = f"hooks = {{ {BOTH} }}"
    real_pool.write(
        "pool.toml",
        f"""
        [[server]]
        name = "job"
        command = {words("-c", "open('notes', 'a').write('job ')")}
        job = true
        [[server]]
        name = "queue"
        command = {words("-c", "import signal; open('notes', 'a').write('queue '); signal.pause()")}
        depends_on = [{{ name = "job", condition = "completed" }}]
        {both}
        """,
    )
    real_pool.ok("start")
    until(lambda: notes(real_pool) == ["job", "before", "queue"])
    real_pool.ok("stop")
    assert notes(real_pool) == ["job", "before", "queue", "after"]


@pytest.mark.slow
def test_hooks_run_as_the_user_of_the_server(real_pool: RealPool) -> None:
    real_pool.open_to_all()
    real_pool.directory.chmod(0o777)
    python = json.dumps([real_pool.python, "hook.py"])[:-1]
    write(
        real_pool,
        f'before_start = {python}, "before"], after_stop = {python}, "after"]',
        extra='user = "nobody"',
    )
    real_pool.ok("start")
    real_pool.ok("stop")
    uids = [seen(real_pool, hook)["uid"] for hook in ("before", "after")]
    assert uids == [seen(real_pool, "before")["uid"]] * 2 != [os.getuid()] * 2
    assert seen(real_pool, "before")["env"]["USER"] == "nobody"


@pytest.mark.slow
def test_secrets_of_the_pool_are_withheld_from_hooks(real_pool: RealPool) -> None:
    write(real_pool, BOTH)
    real_pool.append('\n[defaults.tls]\ncert = "c"\nkey = "k"\npassword_env = "SECRET"\n')
    real_pool.ok("start", env={"SECRET": "secret", "PLAIN": "1"})
    env = seen(real_pool, "before")["env"]
    assert ("SECRET" in env, env["PLAIN"]) == (False, "1")
