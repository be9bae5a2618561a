"""A pool that was stopped leaves its logs, and nothing else in the runtime directory."""

from __future__ import annotations

import threading

from tests.ports import claim_port
from tests.real_pool import RealPool


def test_stop_leaves_only_logs_and_says_where_they_are(real_pool: RealPool) -> None:
    real_pool.write_hello("a", "b")
    file = real_pool.directory / "pool.toml"
    route = f'[gateway]\nbind = "127.0.0.1:{claim_port()}"\n[[route]]\npath = "/"\nto = "a"\n'
    file.write_text(route + file.read_text())
    env = {"POOLCTL_STATE_DIR": str(real_pool.directory / "state")}
    real_pool.ok("start", env=env)
    (place,) = (each for each in real_pool.runtime.iterdir() if not each.name.startswith("@"))
    said = real_pool.ok("stop", env=env).stdout
    logs = real_pool.directory / "state" / place.name / "logs"
    assert said == f"2 servers stopped: a, b\nlogs: {logs}\n"
    assert sorted(each.name for each in logs.iterdir()) == ["a.log", "b.log"]
    assert [*real_pool.runtime.iterdir()] == []


def test_logs_that_say_something_stay(real_pool: RealPool) -> None:
    real_pool.write_hello("a")
    real_pool.ok("start")
    real_pool.replace_supervisor()  # its successor logs what it adopts
    real_pool.ok("stop")
    (place,) = real_pool.runtime.iterdir()
    assert sorted(each.name for each in place.iterdir()) == ["state", "supervisor.log"]


def test_pool_can_be_started_while_its_predecessor_ends(real_pool: RealPool) -> None:
    real_pool.write_hello("a")
    for _ in range(5):
        real_pool.ok("start")
        stopping = threading.Thread(target=real_pool.run, args=("stop", "--no-wait"))
        stopping.start()
        real_pool.run("start")
        stopping.join()
        real_pool.ok("start")
        assert real_pool.ok("status").code == 0
    real_pool.ok("stop")
