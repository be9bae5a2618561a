"""A program is more than its first process: the others of its group are asked to end too, and get their time."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.integration.processes.test_both_killed import kill_both
from tests.ports import claim_port
from tests.processes import is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# Notes its stop signal, and then ends if its second argument says so.
CHILD = """
import os, signal, sys

def note(what):
    with open(f"{sys.argv[1]}.notes", "a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")

def asked(number, frame):
    note(f"asked by {signal.Signals(number).name}")
    if sys.argv[2] == "ends":
        sys.exit(0)

for number in (signal.SIGTERM, signal.SIGQUIT):
    signal.signal(number, asked)
note("began")
while True:
    signal.pause()
"""


def program(name: str, script: str, more: str = "") -> str:
    """The table of a program that is a shell with this script; in it, CHILD begins the child above."""
    script = script.replace("CHILD", f"python3 child.py {name}")
    return f"[[server]]\nname = '{name}'\ncommand = ['sh', '-c', '''{script}''']\n{more}\n"


def write(pool: RealPool, *tables: str) -> None:
    pool.write("child.py", CHILD)
    pool.write("pool.toml", "\n".join(tables))


def notes(pool: RealPool, name: str) -> list[str]:
    path = pool.directory / f"{name}.notes"
    return path.read_text().splitlines() if path.exists() else []


def asked(pool: RealPool, name: str) -> list[str]:
    """The stop signals that the children of this program have noted."""
    return [note.split()[2] for note in notes(pool, name) if note.startswith("asked")]


def begun(pool: RealPool, name: str, until: Any, count: int = 1) -> list[int]:
    """The pids of the program's children, as soon as there have been so many of them."""
    until(
        lambda: (
            len(found := [each for each in notes(pool, name) if each.startswith("began")]) >= count and found
        )
    )
    return [int(each.split()[1]) for each in notes(pool, name) if each.startswith("began")]


@pytest.mark.capability
def test_children_of_a_shell_are_asked_to_end_and_waited_for(pool: RealPool, until: Any) -> None:
    write(
        pool,
        program("line", "cd . && CHILD ends; echo ended"),
        program("pipe", "CHILD ends | cat", "stop_signal = 'SIGQUIT'"),
        program("all", "trap '' TERM; CHILD ends; true", "stop_group = 'together'"),
        program("stubborn", "CHILD stays; true", 'stop_timeout = "3s"'),
    )
    pool.ok("start")
    children = {name: begun(pool, name, until)[0] for name in ("line", "pipe", "all", "stubborn")}
    stopped = pool.ok("stop")
    assert {name: asked(pool, name) for name in children} == {
        "line": ["SIGTERM"],
        "pipe": ["SIGQUIT"],
        "all": ["SIGTERM"],
        "stubborn": ["SIGTERM"],
    }
    assert not any(map(is_alive, children.values()))
    assert "stubborn: had to be killed after 3s" in stopped.stderr
    assert "line: had" not in stopped.stderr


def test_child_of_a_program_with_the_stop_group_leader_runs_until_the_pool_is_stopped(
    pool: RealPool, until: Any
) -> None:
    write(pool, program("kept", "CHILD ends; true", "stop_group = 'leader'"), program("other", "sleep 600"))
    pool.ok("start")
    (child,) = begun(pool, "kept", until)
    pool.ok("restart", "kept")
    assert begun(pool, "kept", until, 2)[0] == child
    pool.ok("stop", "kept")
    assert asked(pool, "kept") == []
    both = begun(pool, "kept", until)
    assert all(map(is_alive, both))

    pool.replace_supervisor()
    pool.ok("stop")
    assert asked(pool, "kept") == ["SIGTERM"] * 2
    assert not any(map(is_alive, both))


@pytest.mark.parametrize("killed", ["supervisor_pid", "keeper_pid"])
def test_child_that_a_crash_leaves_is_asked_to_end_while_the_next_process_serves(
    pool: RealPool, until: Any, killed: str
) -> None:
    write(pool, program("crashes", "CHILD stays; true", 'restart = "always"\nstop_timeout = "6s"'))
    pool.ok("start")
    (child,) = begun(pool, "crashes", until)
    os.kill(pool.items()["crashes"]["pids"][0], signal.SIGKILL)
    _, other = begun(pool, "crashes", until, 2)
    assert is_alive(child), "it has its stop_timeout"
    until(lambda: asked(pool, "crashes") == ["SIGTERM"])
    # The time limit is kept by whichever keeper and supervisor run then.
    before = pool.info()[killed]
    os.kill(before, signal.SIGKILL)
    until(lambda: not is_alive(child) and pool.info()[killed] != before)
    assert is_alive(other)
    pool.ok("stop")
    assert not is_alive(other)


def test_program_that_binds_its_port_itself_is_started_after_the_end_of_what_a_crash_has_left(
    pool: RealPool, until: Any
) -> None:
    write(pool)
    pool.write(
        "child.py",
        """
        import signal, socket, sys, time
        def end(number, frame):
            time.sleep(1)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as listener:
            with open("own.notes", "a") as notes:
                notes.write("began 0\\n")
            while True:
                listener.accept()[0].close()
        """,
    )
    port = claim_port()
    pool.write(
        "pool.toml", program("own", "CHILD {port}; true", f'bind = "127.0.0.1:{port}"\nrestart = "always"')
    )
    pool.ok("start")
    os.kill(pool.items()["own"]["pids"][0], signal.SIGKILL)
    begun(pool, "own", until, 2)
    until(lambda: pool.items()["own"]["ready"])
    assert pool.items()["own"]["restarts"] == 1
    assert "in use" not in pool.ok("logs", "own").stdout
    pool.ok("stop")


def test_child_of_a_program_hears_the_stop_signal_when_keeper_and_supervisor_have_been_killed(
    pool: RealPool, until: Any
) -> None:
    write(pool, program("line", "CHILD ends; true"))
    pool.ok("start")
    (child,) = begun(pool, "line", until)
    kill_both(pool, until)
    assert is_alive(child)
    pool.ok("start")
    assert asked(pool, "line") == ["SIGTERM"]
    assert not is_alive(child)

    _, child = begun(pool, "line", until, 2)
    kill_both(pool, until)
    pool.ok("stop")
    assert asked(pool, "line") == ["SIGTERM"] * 2
    assert not is_alive(child)


def test_children_of_hooks_and_jobs_are_asked_to_end_when_these_have_ended(
    pool: RealPool, until: Any
) -> None:
    started = "CHILD ends & while ! test -e NAME.notes; do sleep 0.05; done"
    hook = started.replace("CHILD", "python3 child.py hook").replace("NAME", "hook")
    write(
        pool,
        program("task", started.replace("NAME", "task"), "job = true"),
        program("web", "sleep 600", f'hooks = {{ before_start = ["sh", "-c", "{hook}"] }}'),
    )
    pool.ok("start")
    for name in ("task", "hook"):
        until(lambda name=name: asked(pool, name) == ["SIGTERM"])
        (child,) = begun(pool, name, until)
        until(lambda child=child: not is_alive(child))
    assert pool.items()["task"]["state"] == "completed"
    pool.ok("stop")


def test_processes_with_a_session_of_their_own_are_named_by_stop_and_doctor(
    pool: RealPool, until: Any
) -> None:
    # The second has become a daemon: its parent has exited.
    write(
        pool,
        program("one", "setsid CHILD stays & while ! test -e one.notes; do sleep 0.05; done; sleep 600"),
        program("two", "(setsid CHILD stays &); while ! test -e two.notes; do sleep 0.05; done; sleep 600"),
        program("other", "sleep 600"),
    )
    pool.ok("start")
    pids = {name: begun(pool, name, until)[0] for name in ("one", "two")}
    words = "with a session of its own"
    checks = {check["message"] for check in pool.run("doctor", "-o", "json").json["items"]}
    assert {each for each in checks if words in each} == {
        f"two has left pid {pids['two']} (python3) behind, {words}"
    }
    named = "was not asked to end, because it has a session of its own"
    stopped = pool.ok("stop", "one", "other").stderr
    assert [line for line in stopped.splitlines() if named in line] == [
        f"warning: one: pid {pids['one']} (python3) {named}"
    ]
    assert all(map(is_alive, pids.values()))
    assert stopped.count(named) == 1
    everything = pool.ok("stop").stderr
    assert all(f"{name}: pid {pid} (python3) {named}" in everything for name, pid in pids.items())
    assert not any(map(is_alive, pids.values()))
