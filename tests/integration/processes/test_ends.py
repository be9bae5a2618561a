"""How a server ends decides what becomes of it: statuses, signals, policies, timeouts."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.runners.local.memory_kills import control_groups
from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import refused
from tests.processes import freeze, is_alive
from tests.real_pool import HELLO_APP, RealPool


def write(pool: RealPool, port: int, app: str, **keys: Any) -> None:
    pool.write("hello.py", HELLO_APP)
    pool.write("broken.py", app)
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="broken:app", **keys))


ONCE = {"restart": "no"}
NEVER_READY_BY_RUNNING = {**ONCE, "ready_after": "1h"}  # however long a busy machine takes to run a program

FAILURES = [
    ("raise RuntimeError('no settings')", "no settings", "status 3"),
    ("import sys; sys.exit(7)", "status 7", "before it was ready"),
    ("raise SystemExit('cannot go on like this')", "cannot go on like this", "status 1"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", "before it was ready"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", "before it was ready"),
    ("import os; os._exit(9)", "status 9", "before it was ready"),
    ("import no_such_module_anywhere", "no_such_module_anywhere", "status 3"),
    ("application = 1", "has no attribute 'app'", "status 3"),
    ("def appp(scope, receive, send): pass", "has no attribute 'app'; did you mean 'appp'?", "status 3"),
    ("syntax error", "SyntaxError", "status 3"),
    (
        """
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database"})
        """,
        "no database",
        "status 3",
    ),
]


def test_an_app_that_cannot_start_is_a_failure_that_says_why(pool: RealPool, free_port: Any) -> None:
    ports = [free_port() for _ in FAILURES]
    tables = []
    for number, (app, _, _) in enumerate(FAILURES):
        pool.write(f"broken{number}.py", app)
        bind = f"127.0.0.1:{ports[number]}"
        tables.append(server(f"web{number}", bind=bind, app=f"broken{number}:app", **ONCE))
    pool.write("pool.toml", "".join(tables))
    done = pool.run("start", "-o", "json")
    assert done.code == 1, str(done)
    messages = {error["name"]: error["message"] for error in done.json["errors"]}
    items = pool.items()
    for number, (app, word, other) in enumerate(FAILURES):
        message = messages.pop(f"web{number}")
        assert word in message, app
        assert other in message, app
        assert items[f"web{number}"]["state"] == "failed", app
        wait_until(lambda port=ports[number]: refused(port))
    assert messages == {}


def test_an_app_that_hangs_in_its_startup_is_stopped_at_once(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    write(
        pool,
        free_port(),
        """
        import asyncio, pathlib
        async def app(scope, receive, send):
            pathlib.Path("here").touch()
            await asyncio.sleep(50)
        """,
    )
    pool.ok("start", "--no-wait")
    until((pool.directory / "here").exists)
    done = pool.ok("stop", timeout_seconds=40)
    assert "kill" not in done.stderr


def test_a_start_timeout_ends_the_process_too(pool: RealPool, free_port: Any, until: Any) -> None:
    write(pool, free_port(), "import time; time.sleep(100)", start_timeout="4s", **ONCE)
    start = pool.spawn("start")
    (pid,) = until(lambda: pool.items()["web"]["pids"])
    _, stderr = start.communicate(timeout=60)
    assert start.returncode == 1
    assert "was not ready within 4s" in stderr
    assert not is_alive(pid)


def test_a_server_that_dies_again_and_again_has_failed(pool: RealPool, free_port: Any, until: Any) -> None:
    write(
        pool, free_port(), "import sys; sys.exit(1)",
        restart={"policy": "on-failure", "limit": 3, "backoff": {"initial": "10ms", "max": "20ms"}},
    )  # fmt: skip
    assert pool.run("start").code == 1
    until(lambda: pool.items()["web"]["state"] == "failed")
    assert pool.items()["web"]["restarts"] == 3


def test_unrequested_signal_is_a_failure_sigterm_too(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    for count, number in enumerate((signal.SIGTERM, signal.SIGINT), 1):
        os.kill(pool.items()["web"]["pids"][0], number)
        until(lambda count=count: pool.items()["web"]["restarts"] == count and pool.items()["web"]["ready"])
        # The application has been shut down.
        until(lambda count=count: pool.ok("logs", "-n", "all").stdout.count("shutdown complete") == count)


def test_a_worker_that_has_to_be_killed_takes_its_children_with_it(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    app = """
    import pathlib, subprocess, time, threading
    from hello import app
    child = subprocess.Popen(["sleep", "50"])
    pathlib.Path("child").write_text(str(child.pid))
    # A thread that does not end keeps the interpreter from ending.
    threading.Thread(target=time.sleep, args=(50,)).start()
    """
    write(pool, free_port(), app, stop_timeout="300ms")
    pool.ok("start")
    child = int((pool.directory / "child").read_text())
    done = pool.ok("stop")
    assert "web: had to be killed after 300ms" in done.stderr
    until(lambda: not is_alive(child))


def test_exit_handlers_run_and_the_last_line_is_logged(pool: RealPool, free_port: Any) -> None:
    app = """
    import atexit, pathlib, sys
    from hello import app
    atexit.register(lambda: pathlib.Path("said").write_text("goodbye"))
    atexit.register(lambda: sys.stdout.write("the last line, without its end"))
    """
    write(pool, free_port(), app)
    pool.ok("start")
    pool.ok("stop")
    assert (pool.directory / "said").read_text() == "goodbye"
    wait_until(lambda: "the last line, without its end" in pool.ok("logs", "web").stdout)


def test_worker_that_cannot_start_is_explained_without_a_traceback_of_poolctl(
    pool: RealPool, free_port: Any
) -> None:
    wanted: dict[str, dict[str, Any]] = {
        "cannot enter /no/such/directory: No such file or directory": {"cwd": "/no/such/directory"},
        "cannot have 1073741824 open files": {"limits": {"open_files": 2**30}},
        "No module named 'broken'": {"app_dir": "/no/such/directory"},
    }
    pool.write("hello.py", HELLO_APP)
    pool.write("broken.py", "from hello import app")
    pool.write(
        "pool.toml",
        "".join(
            server(f"web{number}", bind=f"127.0.0.1:{free_port()}", app="broken:app", **keys, **ONCE)
            for number, keys in enumerate(wanted.values())
        ),
    )
    done = pool.run("start")
    assert done.code == 1, str(done)
    assert [words for words in wanted if words not in done.stderr] == []
    assert "poolctl/worker" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as other users")
def test_program_that_its_user_may_not_reach_is_explained_with_the_command_that_helps(pool: RealPool) -> None:
    pool.open_to_all()
    closed = pool.write("closed/job", "#!/bin/sh\n").parent
    own = pool.write("own", "#!/bin/sh\n")
    closed.chmod(0o700)
    own.chmod(0o700)
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    enters = f"user nobody may not enter {closed}; as root: chgrp {group} {closed} && chmod g+x {closed}"
    wanted: dict[str, dict[str, Any]] = {
        "cannot run 'closed/job': it is in": {"command": ["closed/job"]},
        "cannot run './own': it may not be executed by user nobody; as root: chgrp": {"command": ["./own"]},
        f"cannot enter {closed}: {enters}": {"command": ["sleep", "600"], "cwd": "closed"},
    }
    tables = (
        server(f"task{number}", user="nobody", **keys, **NEVER_READY_BY_RUNNING)
        for number, keys in enumerate(wanted.values())
    )
    pool.write("pool.toml", "".join(tables))
    done = pool.run("start")
    assert done.code == 1, str(done)
    assert [words for words in wanted if words not in done.stderr] == [], str(done)
    assert "poolctl/worker" not in done.stderr


@pytest.mark.capability
def test_start_says_where_it_has_looked_for_the_application_and_what_it_imports(real_pool: RealPool) -> None:
    real_pool.write_hello("web", extra='restart = "no"')
    real_pool.replace("hello:app", "helo:app")
    known = real_pool.run("validate", "--import").stdout
    done = real_pool.run("start")
    assert done.code == 1, str(done)
    looked_for = f"there is no module 'helo' in {real_pool.directory}; check app and app_dir"
    assert looked_for in known
    assert f"hint: {looked_for}; poolctl logs web" in done.stderr, str(done)
    real_pool.write("helo.py", "import yet_another_library\n")
    python = real_pool.directory / ".venv/bin/python"
    make = f"python3 -m venv {real_pool.directory}/.venv"
    fix = f"install it beside the file: {make} && {python} -m pip install uvicorn yet_another_library"
    done = real_pool.run("restart")
    assert fix in done.stderr, str(done)
    assert "poolctl reload" not in done.stderr
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    done = real_pool.run("restart")
    assert f"; poolctl reload, which uses {python}" in done.stderr, str(done)


# Ends at once, or when a file is there, which it removes.
CRASHING = """
import os, sys, time

for path in sys.argv[1:]:
    while not os.path.exists(path):
        time.sleep(0.02)
    os.remove(path)
sys.exit("shop.NoSettings: SHOP_DSN is not set")
"""
# A program without a port that has run for a second counts as started, unless a probe says when it is.
NEVER_READY = {"startup": {"exec": ["false"]}}
CAUSE = "exited with status 1: shop.NoSettings: SHOP_DSN is not set"


def crash_loop(pool: RealPool, *, limit: int, ready: bool) -> None:
    pool.write("crashing.py", CRASHING)
    restart = {"limit": limit, "backoff": {"initial": "20ms" if limit < 9 else "1m", "max": "1m"}}
    command = [sys.executable, "crashing.py", *(["crash"] if ready else [])]
    keys = {} if ready else {"health": NEVER_READY}
    pool.write("pool.toml", server("web", command=command, restart=restart, **keys))
    pool.run("start")
    if ready:
        crash_when_ready(pool, "web")


def crash_when_ready(pool: RealPool, name: str) -> None:
    """Twice: it is restarted at once the first time, and then is in backoff."""
    for restarts in range(2):
        wait_until(
            lambda restarts=restarts: (item := pool.items()[name])["ready"] and item["restarts"] == restarts
        )
        pool.write("crash", "")


WAITS = """
import os, time

while not os.path.exists("go"):
    time.sleep(0.02)
time.sleep(1000)
"""


@pytest.mark.heavy
def test_start_names_a_server_that_was_ready_and_is_not_when_it_returns(pool: RealPool) -> None:
    pool.write("crashing.py", CRASHING)
    pool.write("waits.py", WAITS)
    backoff = {"initial": "1m", "max": "1m"}
    pool.write(
        "pool.toml",
        server("short", command=[sys.executable, "crashing.py", "crash"], restart={"backoff": backoff})
        + server(
            "late",
            command=[sys.executable, "waits.py"],
            start_timeout="100s",
            health={"startup": {"exec": ["test", "-e", "go"]}},
        ),
    )
    start = pool.spawn("start")
    crash_when_ready(pool, "short")
    wait_until(lambda: pool.items()["short"]["state"] == "backoff")
    pool.write("go", "")
    stdout, stderr = start.communicate(timeout=60)
    assert (start.returncode, stdout.splitlines()[0]) == (1, "1 of 2 servers ready")
    assert f"error: short: ended after it was ready: {CAUSE}\n" in stderr
    assert "note: poolctl keeps trying to start short; poolctl stop short ends that" in stderr


@pytest.mark.heavy
def test_start_says_that_a_program_without_restart_is_not_tried_again(pool: RealPool) -> None:
    pool.write("crashing.py", CRASHING)
    command = [sys.executable, "crashing.py"]
    pool.write("pool.toml", server("web", command=command, restart="no", health=NEVER_READY))
    done = pool.run("start")
    assert done.code == 1
    assert "keeps trying" not in done.stderr


def test_command_that_never_listens_is_said_to_have_accepted_nothing(pool: RealPool, free_port: Any) -> None:
    bind = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", "import time; time.sleep(1000)"]
    pool.write("pool.toml", server("web", bind=bind, command=command, start_timeout="1s"))
    said = f"web: was not ready within 1s: nothing has accepted a connection on {bind}"
    assert said in pool.run("start").stderr


@pytest.mark.heavy
def test_cause_of_a_server_that_is_given_up_is_kept_over_an_upgrade(pool: RealPool) -> None:
    crash_loop(pool, limit=2, ready=False)
    cause = f"{CAUSE.replace(':', ' before it was ready:', 1)}; given up after 2 restarts in 5m"
    wait_until(lambda: pool.items()["web"]["state"] == "failed")
    pool.ok("upgrade", "--allow-same-version")
    assert f"error: web: {cause}" in pool.run("status").stderr
    assert f"web has failed: {cause}" in pool.run("doctor").stdout
    (waited,) = pool.run("wait", "--timeout", "0.1", "-o", "json").json["errors"]
    assert waited["message"] == cause
    assert cause in pool.ok("events", "--kind", "lifecycle").stdout


@pytest.mark.heavy
def test_cause_of_a_server_that_ended_after_it_was_ready_is_shown_while_it_is_in_backoff(
    pool: RealPool,
) -> None:
    crash_loop(pool, limit=20, ready=True)
    wait_until(lambda: pool.items()["web"]["state"] == "backoff")
    assert f"error: web: {CAUSE}\n" in pool.run("status").stderr
    assert f"web is in backoff: {CAUSE}\n" in pool.run("doctor").stdout.replace(";", "\n")
    (waited,) = pool.run("wait", "--timeout", "0.1", "-o", "json").json["errors"]
    assert waited["message"] == f"is in backoff, not ready: {CAUSE}"
    assert waited["hint"] == "poolctl logs web"
    assert f"running → backoff ({CAUSE})" in pool.ok("events", "--kind", "lifecycle").stdout


NOTES_ITS_END = """
import signal, sys

def end(*_):
    with open(sys.argv[1], "a") as notes:
        notes.write("ended\\n")
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True:
    signal.pause()
"""

NOTES_ITS_SHUTDOWN = """
from hello import app as hello
async def app(scope, receive, send):
    if scope["type"] != "lifespan":
        return await hello(scope, receive, send)
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    with open("web", "a") as notes:
        notes.write("ended\\n")
    await send({"type": "lifespan.shutdown.complete"})
"""


def test_a_suspended_server_hears_that_it_is_to_end(pool: RealPool, free_port: Any) -> None:
    pool.write("noting.py", NOTES_ITS_END)
    write(pool, free_port(), NOTES_ITS_SHUTDOWN)
    pool.append(server("alone", command=[sys.executable, "noting.py", "alone"]))
    shell = ["sh", "-c", f"{sys.executable} noting.py behind; exit 0"]
    pool.append(server("shell", command=shell, stop_group="together"))
    pool.ok("start")
    for starts, command in enumerate(("restart", "stop"), 1):
        wait_until(lambda starts=starts: pool.ok("logs", "alone").stdout.count("up") == starts)
        wait_until(lambda starts=starts: pool.ok("logs", "shell").stdout.count("up") == starts)
        for item in pool.items().values():
            freeze(item["pids"][0])
        pool.ok(command)
        for name in ("web", "alone", "behind"):
            assert (pool.directory / name).read_text() == starts * "ended\n", (command, name)


@pytest.mark.capability
def test_a_program_of_the_pool_can_stop_the_pool(pool: RealPool, free_port: Any) -> None:
    write(pool, free_port(), "from hello import app")
    words = ["sh", "-c", f"{shlex.join(pool.command())} -c pool.toml stop; sleep 600"]
    pool.append(server("last", command=words, depends_on=["web"]))
    pool.ok("start", "web")
    pool.ok("start", "--no-wait")
    wait_until(lambda: not pool.processes())


@pytest.mark.parametrize(
    ("name", "meaning"), [("XCPU", "limit of CPU time reached"), ("SYS", "system call forbidden by seccomp")]
)
def test_signal_that_only_the_kernel_sends_is_explained(real_pool: RealPool, name: str, meaning: str) -> None:
    command = ["sh", "-c", f"kill -{name} $$"]
    real_pool.write("pool.toml", server("work", command=command, **NEVER_READY_BY_RUNNING))
    assert f"killed by SIG{name} ({meaning}) before it was ready" in real_pool.run("start").stderr


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A new control group in which processes may use 200 MB."""
    limit = {"memory.events": "memory.max", "memory.oom_control": "memory.limit_in_bytes"}
    parents = [
        (Path(parent), file)
        for parent in control_groups("memory")
        for events, file in limit.items()
        if os.path.exists(f"{parent}/{events}")
    ]
    if not parents:
        pytest.skip("no control group of memory")
    parent, file = parents[0]
    group = parent / f"poolctl-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        try:
            (group / file).write_text("200M")
        except OSError as error:
            pytest.skip(f"memory cannot be limited: {error}")
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_kill_for_lack_of_memory_is_told_from_an_ordinary_one(
    control_group: Path, real_pool: RealPool
) -> None:
    waits = "import os, time\nwhile not os.path.exists('{}'): time.sleep(0.01)\n"
    eats = [sys.executable, "-c", waits.format("eat") + "x = b'x' * 400_000_000\ntime.sleep(60)"]
    child = ["sh", "-c", f"{shlex.join([*eats[:2], eats[2].replace('eat', 'child')])}; exit $?"]
    killed = ["sh", "-c", "sleep 60 & wait; kill -KILL $$"]
    tables = {"eater": eats, "shell": child, "killed": killed}
    real_pool.write("pool.toml", "".join(server(name, command=each, **ONCE) for name, each in tables.items()))
    joins = f"echo $$ > {control_group}/cgroup.procs; exec " + shlex.join([*real_pool.command(), "start"])
    subprocess.run(["sh", "-c", joins], cwd=real_pool.directory, env=real_pool.env, check=True)

    def end_of(name: str) -> str:
        events = real_pool.run("events", "-o", "json").stdout.splitlines()
        ends = [each for each in map(json.loads, events) if each["event"] == "worker ended"]
        return next((each["message"] for each in ends if each["server"] == name), "")

    memory = "(out of memory: oom_kill of its control group)"
    os.kill(real_pool.items()["killed"]["pids"][0], signal.SIGKILL)
    wait_until(lambda: end_of("killed") == "killed by SIGKILL")
    real_pool.write("eat", "")
    wait_until(lambda: end_of("eater") == f"killed by SIGKILL {memory}")
    real_pool.write("child", "")
    wait_until(lambda: end_of("shell") == f"exited with status 137 {memory}")
    real_pool.end()


def test_failure_is_not_explained_by_what_another_process_prints(real_pool: RealPool) -> None:
    noisy = 'if [ -e silent ]; then exec sleep 0.3; fi; while :; do echo "ValueError: of the old one"; sleep 0.01; done'
    keys: dict[str, Any] = {"overlap": True, "notify": True}
    ready = "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    ready += "s.connect(os.environ['NOTIFY_SOCKET']); s.send(b'READY=1')"
    script = f"[ -e silent ] || {shlex.join([sys.executable, '-c', ready])}; {noisy}"
    real_pool.write("pool.toml", server("work", bind="127.0.0.1:0", command=["sh", "-c", script], **keys))
    real_pool.ok("start")
    real_pool.write("silent", "")
    done = real_pool.run("restart")
    assert done.code == 1, str(done)
    assert "before it was ready" in done.stderr
    assert "ValueError" not in done.stderr, done.stderr
    assert "worker ended" in real_pool.ok("events").stdout
    assert "ValueError" not in real_pool.ok("events").stdout


def test_failure_is_not_explained_by_lines_of_unknown_age(real_pool: RealPool) -> None:
    log = real_pool.write("shared.log", "Error: of another year\n")
    keys = {"command": ["sh", "-c", "exit 4"], "log": {"path": str(log)}, **NEVER_READY_BY_RUNNING}
    real_pool.write("pool.toml", server("work", **keys))
    done = real_pool.run("start")
    assert "exited with status 4 before it was ready" in done.stderr
    assert "another year" not in done.stderr


def test_hint_is_not_that_of_an_earlier_failure(real_pool: RealPool) -> None:
    script = "[ -e slow ] || { echo 'Error: no database'; exit 4; }; exec sleep 60"
    keys = {"bind": "127.0.0.1:0", "command": ["sh", "-c", script], "notify": True}
    real_pool.write("pool.toml", server("work", **keys, **ONCE))
    assert "exited with status 4 before it was ready: Error: no database" in real_pool.run("start").stderr
    real_pool.write("slow", "")
    done = real_pool.run("start", "--timeout", "1")
    assert done.code == 124
    assert "is still starting" in done.stderr
    assert "database" not in done.stderr, done.stderr
