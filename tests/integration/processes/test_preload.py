"""`preload = true`: an application imported once, its workers forked from there; and what is done where that fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.processes import children, descriptors, freeze, is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# Answers with what it is told about its import, by whoever asks.
APP = """
import json, os, random
WHERE = os.getpid()
OF_THE_APP = random.Random()
made = []
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = {"imported_in": WHERE, "pid": os.getpid(), "version": VERSION, "made": made,
            "random": random.random(), "random_of_the_app": OF_THE_APP.random(), "x": os.environ.get("X")}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
def factory():
    made.append(os.getpid())
    return app
def handlers():
    made.append(os.getpid())
    return {"": app}
"""


def write(
    pool: RealPool, free_port: Any, *names: str, app: str = "VERSION = 1\n" + APP, extra: str = ""
) -> dict[str, int]:
    """Ports by name of preloaded servers; `extra` goes into the table of each."""
    pool.write("imported.py", app)
    ports = {name: free_port() for name in names or ("web",)}
    tables = (
        f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{port}"\npreload = true\n'
        + ("" if "handlers" in extra else 'app = "imported:app"\n' if "app =" not in extra else "")
        + f"{extra}\n"
        for name, port in ports.items()
    )
    pool.write("pool.toml", "".join(tables))
    return ports


def write_apart(pool: RealPool, free_port: Any, modules: dict[str, str], extra: str = "") -> dict[str, int]:
    """As `write`, for one server of each of these modules and of its name."""
    ports = write(pool, free_port, *modules, extra=extra)
    for name, text in modules.items():
        pool.write(f"{name}.py", text)
    for name in modules:
        pool.replace('"imported:app"', f'"{name}:app"', 1)
    return ports


def app_zygotes(pool: RealPool) -> list[int]:
    """The pids of those that are there."""
    found = []
    for pid in children(pool.info()["keeper_pid"]):
        try:
            if is_alive(pid) and Path(f"/proc/{pid}/comm").read_text().strip() == "poolctl-app":
                found.append(pid)
        except OSError:
            continue
    return found


def asked(port: int) -> dict[str, Any]:
    found: dict[str, Any] = get(port).json()
    return found


@pytest.mark.capability
def test_servers_that_are_alike_share_one_import_and_no_randomness_of_the_standard_library(
    pool: RealPool, free_port: Any
) -> None:
    ports = write(pool, free_port, "a", "b", "c", extra="workers = 2")
    pool.ok("start")
    answers = [asked(port) for port in ports.values()]
    (zygote,) = app_zygotes(pool)
    assert {answer["imported_in"] for answer in answers} == {zygote}
    assert len({answer["pid"] for answer in answers}) == 3
    assert len({answer["random"] for answer in answers}) == 3
    assert len({answer["random_of_the_app"] for answer in answers}) == 1  # as the documentation says
    keeper = pool.info()["keeper_pid"]
    for item in pool.items().values():
        assert set(item["pids"]) <= set(children(keeper))


def test_application_may_replace_the_functions_of_json(pool: RealPool, free_port: Any) -> None:
    shim = "import json\nreal = json.dumps\njson.dumps = lambda obj, default=None: real(obj).encode()\n"
    ports = write(
        pool,
        free_port,
        app="VERSION = 1\n" + shim + APP.replace("json.dumps(body).encode()", "json.dumps(body)"),
    )
    pool.ok("start")
    before = asked(ports["web"])
    pool.ok("restart")
    after = asked(ports["web"])
    assert before["imported_in"] != before["pid"] != after["pid"]


@pytest.mark.heavy
def test_zygote_holds_its_own_sockets_and_no_other_descriptor(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    write(pool, free_port)
    pool.ok("start")
    (zygote,) = app_zygotes(pool)

    def kinds() -> list[str]:
        held = descriptors(zygote).values()
        return sorted(target.partition(":")[0] for target in held if target != "/dev/null")

    until(lambda: kinds() == ["socket"], what=lambda: str(descriptors(zygote)))


def test_a_server_with_another_environment_has_an_import_of_its_own(pool: RealPool, free_port: Any) -> None:
    ports = write(pool, free_port, "a", "b")
    text = (pool.directory / "pool.toml").read_text()
    (pool.directory / "pool.toml").write_text(text + 'env = { X = "1" }\n')
    pool.ok("start")
    answers = {name: asked(port) for name, port in ports.items()}
    assert sorted(answer["imported_in"] for answer in answers.values()) == sorted(app_zygotes(pool))
    assert (answers["a"]["x"], answers["b"]["x"]) == (None, "1")


def test_a_crash_takes_the_code_that_is_there_and_a_restart_the_new_one_once(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    ports = write(pool, free_port, "a", "b")
    pool.ok("start")
    (before,) = app_zygotes(pool)
    pool.write("imported.py", "VERSION = 2 + 0\n" + APP)
    (pid,) = pool.items()["a"]["pids"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pool.items()["a"]["pids"] not in ([], [pid]))
    assert asked(ports["a"])["version"] == 1
    pool.ok("restart")
    answers = [asked(port) for port in ports.values()]
    until(lambda: not is_alive(before))
    (after,) = app_zygotes(pool)
    assert {answer["imported_in"] for answer in answers} == {after}
    assert {answer["version"] for answer in answers} == {2}


def test_an_import_that_fails_at_a_restart_leaves_what_serves_and_what_it_is_forked_from(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    port = write(pool, free_port)["web"]
    pool.ok("start")
    (pid,) = pool.items()["web"]["pids"]
    (zygote,) = app_zygotes(pool)
    pool.write("imported.py", "broken = nothing\n")
    done = pool.run("restart")
    assert done.code == 1
    assert "name 'nothing' is not defined" in done.stderr
    assert pool.items()["web"]["pids"] == [pid]
    until(lambda: app_zygotes(pool) == [zygote])  # the one that has failed ends
    os.kill(pid, signal.SIGKILL)
    until(lambda: pool.items()["web"]["pids"] not in ([], [pid]))
    assert asked(port)["imported_in"] == zygote


THREAD = (
    "import threading\nthreading.Thread(target=threading.Event().wait, name='ticker', daemon=True).start()\n"
)
CONNECTION = (
    "import socket\nL = socket.create_server(('127.0.0.1', 0))\n"
    "S = socket.create_connection(L.getsockname())\n"
)
NATIVE_THREAD = (
    "import ctypes\nlibc, thread = ctypes.CDLL(None), ctypes.c_ulong()\n"
    "libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)\n"
)
CHILD = "import subprocess\nC = subprocess.Popen(['sleep', '50'])\n"


UNSHARED = {
    "thread": (THREAD, "its import started the thread 'ticker'"),
    "native": (NATIVE_THREAD, "its import started a thread, which no fork can share"),
    "connection": (CONNECTION, "a connection to 127.0.0.1:"),
    "child": (CHILD, "its import started the process "),
    "file": ("F = open(__file__)\n", "unshared_file.py"),
}


@pytest.mark.heavy
def test_imports_that_no_fork_can_share_are_said_and_done_in_the_worker(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    ports = write_apart(
        pool,
        free_port,
        {f"unshared_{name}": does + "VERSION = 1\n" + APP for name, (does, _) in UNSHARED.items()},
    )
    done = pool.ok("start")
    assert done.stderr.count("preload = true has no effect: its import ") == len(UNSHARED)
    assert app_zygotes(pool) == []
    for name, (_, said) in UNSHARED.items():
        server = f"unshared_{name}"
        answer = asked(ports[server])
        assert answer["imported_in"] == answer["pid"], server
        assert [line for line in done.stderr.splitlines() if server in line and said in line], done
        until(lambda said=said, server=server: said in pool.ok("logs", server).stdout)
        assert said in pool.ok("show", server).stdout
        assert said in pool.ok("show", server, "-o", "json").json["items"][0]["preload_problem"]


@pytest.mark.heavy
def test_threads_that_their_library_ends_before_a_fork_are_no_obstacle(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    pytest.importorskip("numpy")
    # OpenBLAS has started its threads when it is loaded, and has them again in each worker that computes.
    app = """
import json, os, numpy
WHERE = os.getpid()
BEFORE = len(os.listdir("/proc/self/task"))
A = numpy.arange(90000.0).reshape(300, 300)
A_SQUARED = A @ A
async def app(scope, receive, send):
    if scope["type"] == "http":
        right = bool(numpy.allclose(A @ A, A_SQUARED))
        body = {"imported_in": WHERE, "pid": os.getpid(), "right": right, "before": BEFORE,
                "threads": len(os.listdir("/proc/self/task"))}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})
"""
    port = write(pool, free_port, app=app, extra="workers = 3")["web"]
    assert "preload" not in pool.ok("start").stderr
    answers = [asked(port) for _ in range(12)]
    assert all(each["right"] for each in answers)
    assert {each["imported_in"] for each in answers} == set(app_zygotes(pool))
    if len(os.sched_getaffinity(0)) > 1:
        assert answers[0]["before"] > 1, "it would show nothing"
        assert all(each["threads"] >= each["before"] for each in answers)
    os.kill(answers[0]["pid"], signal.SIGKILL)
    until(
        lambda: len(pool.items()["web"]["pids"]) == 3 and answers[0]["pid"] not in pool.items()["web"]["pids"]
    )
    assert all(asked(port)["right"] for _ in range(6))


@pytest.mark.heavy
def test_descriptor_that_an_import_has_closed_is_no_obstacle(pool: RealPool, free_port: Any) -> None:
    passing = (
        "import socket, subprocess, threading\nwith socket.socket(): pass\nsubprocess.run(['true'])\n"
        "T = threading.Thread(target=int)\nT.start()\nT.join()\n"
    )
    port = write(pool, free_port, app=passing + "VERSION = 1\n" + APP)["web"]
    assert "preload" not in pool.ok("start").stderr
    assert asked(port)["imported_in"] in app_zygotes(pool)


WITHOUT_OUTPUT = {
    "closed": "for stream in (sys.stdin, sys.stdout, sys.stderr):\n    stream.close()\n",
    "descriptors": "os.closerange(0, 3)\n",
    "none": "sys.stdout = sys.stderr = None\n",
    "replaced": "sys.stdout = sys.stderr = object()\n",
}


def test_application_that_closes_or_replaces_its_standard_streams_runs_as_without_preload(
    pool: RealPool, free_port: Any
) -> None:
    ports = write_apart(
        pool,
        free_port,
        {name: f"import os, sys\n{does}VERSION = 1\n{APP}" for name, does in WITHOUT_OUTPUT.items()},
    )
    assert "preload" not in pool.ok("start").stderr
    assert {asked(port)["imported_in"] for port in ports.values()} == set(app_zygotes(pool))
    pool.replace("preload = true\n", "")
    pool.ok("reload")
    pool.ok("restart")
    for port in ports.values():
        answer = asked(port)
        assert answer["imported_in"] == answer["pid"]
    pool.ok("stop")
    ended = [line for line in pool.ok("events").stdout.splitlines() if "worker ended" in line]
    assert len(ended) == 2 * len(ports)
    assert all("exited with status 0" in line for line in ended), ended


FAILING = {
    "silent_exception": "import sys\nsys.stderr.close()\nraise ValueError('no good')\n",
    "silent_exit": "import sys\nsys.stderr.close()\nsys.exit('last words')\n",
    "exception": "print('beginning')\nraise ValueError('no good')\n",
    "exit": "import sys\nprint('last words')\nsys.exit(9)\n",
    "killed": "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "lacking": "apple = 1\n",  # no such attribute
}


def test_failing_imports_are_reported_as_without_preload(pool: RealPool, free_port: Any) -> None:
    write_apart(pool, free_port, FAILING, extra='restart = "no"')
    with_it = pool.run("start", "-o", "json")
    pool.run("stop")
    text = (pool.directory / "pool.toml").read_text()
    (pool.directory / "pool.toml").write_text(text.replace("preload = true\n", ""))
    without = pool.run("start", "-o", "json")
    assert with_it.code == without.code == 1
    errors = reasons(with_it.json)
    assert errors.keys() == FAILING.keys()
    assert errors == reasons(without.json)
    assert "no good" in errors["silent_exception"]["message"]
    assert "status 1" in errors["silent_exit"]["message"]


def reasons(document: dict[str, Any]) -> dict[str, Any]:
    """The error of each server; what it printed last stands in its line or below it, as fast as the logger was."""
    return {
        each["name"]: {**each, "message": each["message"].replace("\n    ", ": ")}
        for each in document["errors"]
    }


@pytest.mark.heavy
def test_an_import_takes_start_timeout_and_no_longer(pool: RealPool, free_port: Any, until: Any) -> None:
    write(
        pool, free_port, app="import time\ntime.sleep(50)\n", extra='start_timeout = "300ms"\nrestart = "no"'
    )
    done = pool.run("start")
    assert done.code == 1
    assert "was not ready within 300ms" in done.stderr
    until(lambda: app_zygotes(pool) == [])


@pytest.mark.heavy
def test_hanging_zygote_is_killed_when_another_has_replaced_it(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    port = write(pool, free_port)["web"]
    pool.ok("start")
    (before,) = app_zygotes(pool)
    freeze(before)
    pool.ok("restart")
    until(lambda: not is_alive(before))
    assert [asked(port)["imported_in"]] == app_zygotes(pool)


def test_zygote_ends_when_the_last_server_that_needs_it_has_stopped(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    ports = write(pool, free_port, "a", "b")
    pool.ok("start")
    zygotes = app_zygotes(pool)
    pool.ok("stop", "a")
    assert app_zygotes(pool) == zygotes
    pool.write("imported.py", "VERSION = 2 + 0\n" + APP)
    pool.ok("start", "a")
    assert asked(ports["a"])["version"] == 2, "what is started anew has the code of now"
    pool.ok("stop", "*")
    until(lambda: app_zygotes(pool) == [])


@pytest.mark.heavy
def test_dead_zygote_is_started_again_when_it_is_needed(pool: RealPool, free_port: Any, until: Any) -> None:
    port = write(pool, free_port)["web"]
    pool.ok("start")
    (zygote,) = app_zygotes(pool)
    (pid,) = pool.items()["web"]["pids"]
    os.kill(zygote, signal.SIGKILL)
    until(lambda: not is_alive(zygote))
    assert asked(port)["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: pool.items()["web"]["pids"] not in ([], [pid]))
    assert [asked(port)["imported_in"]] == app_zygotes(pool) != [zygote]


def test_zygote_is_taken_over_by_a_new_supervisor(pool: RealPool, free_port: Any, until: Any) -> None:
    port = write(pool, free_port)["web"]
    pool.ok("start")
    zygotes, (pid,) = app_zygotes(pool), pool.items()["web"]["pids"]
    pool.replace_supervisor()
    assert pool.items()["web"]["pids"] == [pid]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pool.items()["web"]["pids"] not in ([], [pid]))
    assert app_zygotes(pool) == zygotes == [asked(port)["imported_in"]]
    pool.ok("stop")
    until(lambda: not pool.processes())


def test_a_factory_and_handlers_are_called_in_the_worker(pool: RealPool, free_port: Any) -> None:
    ports = write(pool, free_port, extra='app = "imported:factory"\nfactory = true\n')
    text = (pool.directory / "pool.toml").read_text()
    port = free_port()
    handlers = (
        f'[pool]\nhandlers = "imported:handlers"\n{text}[[server]]\nname = "h"\nbind = "127.0.0.1:{port}"\n'
    )
    (pool.directory / "pool.toml").write_text(handlers + "preload = true\n")
    pool.ok("start")
    for answer in (asked(ports["web"]), asked(port)):
        assert answer["made"] == [answer["pid"]] != [answer["imported_in"]]
        assert answer["imported_in"] in app_zygotes(pool)


def test_a_server_that_sleeps_wakes_by_a_fork_and_after_a_restart_with_the_new_code(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    port = write(pool, free_port, extra="scale = { min = 0 }")["web"]
    pool.ok("start")
    (before,) = until(lambda: app_zygotes(pool))
    assert pool.items()["web"]["state"] == "sleeping"
    pool.write("imported.py", "VERSION = 2 + 0\n" + APP)
    pool.ok("restart")
    until(lambda: app_zygotes(pool) not in ([], [before]) and not is_alive(before))
    answer = asked(port)
    assert (answer["imported_in"], answer["version"]) == (app_zygotes(pool)[0], 2)
    pool.ok("stop")
    until(lambda: not pool.processes())


@pytest.mark.heavy
def test_an_import_that_fails_for_several_servers_is_in_the_log_of_each(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    write(pool, free_port, "a", "b", app="print('beginning')\nbroken = nothing\n", extra='restart = "no"')
    errors = {error["name"]: error for error in pool.run("start", "-o", "json").json["errors"]}
    assert sorted(errors) == ["a", "b"]
    for name, error in errors.items():
        first, *_ = error["message"].splitlines()
        assert first.endswith("NameError: name 'nothing' is not defined")
        assert error["hint"] == f"poolctl logs {name}"
        until(lambda name=name: "NameError" in pool.ok("logs", name).stdout)
        log = pool.ok("logs", name).stdout
        assert log.count("beginning") == 1
        assert log.count("NameError") == 1


@pytest.mark.heavy
def test_a_supervisor_that_is_killed_during_an_import_is_followed_by_one_that_waits_for_it(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    slow = (
        "import os, time\nopen('begun', 'w')\nwhile not os.path.exists('go'): time.sleep(0.01)\nVERSION = 1\n"
    )
    port = write(pool, free_port, app=slow + APP)["web"]
    pool.ok("start", "--no-wait")
    until((pool.directory / "begun").exists)  # before that, the keeper may not know it yet
    (zygote,) = app_zygotes(pool)
    pool.replace_supervisor()
    pool.write("go", "")
    pool.ok("wait")
    assert asked(port)["imported_in"] == zygote
    assert app_zygotes(pool) == [zygote]


@pytest.mark.heavy
def test_a_restart_with_another_environment_imports_there(pool: RealPool, free_port: Any, until: Any) -> None:
    port = write(pool, free_port, extra="workers = 2")["web"]
    pool.ok("start")
    (before,) = app_zygotes(pool)
    pool.ok("restart", "--env", env={"X": "new"})
    until(lambda: not is_alive(before))
    answer = asked(port)
    assert answer["x"] == "new"
    assert [answer["imported_in"]] == app_zygotes(pool) != [before]
