"""Who is whose parent, what a worker holds, and what is left when it ends."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from tests.processes import children, command_line, descriptors, is_alive, stat
from tests.real_pool import RealPool

LIMITS = """
import json, os, resource
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = json.dumps({"open_files": resource.getrlimit(resource.RLIMIT_NOFILE), "pid": os.getpid()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

FORKING = """
import os, subprocess, sys, time
from hello import app
read, write = os.pipe()
def sleep():
    subprocess.Popen(["sleep", "50"])
    if os.fork() == 0:
        os.write(write, b"x")
        time.sleep(50)
        os._exit(0)
    if os.fork() == 0:
        os.setsid()
        os.write(write, b"x")
        time.sleep(50)
        os._exit(0)
    os.read(read, 1)
    os.read(read, 1)
sleep()
"""


def test_the_keeper_is_the_parent_of_everything_and_each_worker_leads_its_session(pool: RealPool) -> None:
    pool.write_hello("a", "b", extra="workers = 2")
    pool.ok("start")
    keeper = pool.info()["keeper_pid"]
    pids = [pid for item in pool.items().values() for pid in item["pids"]]
    assert len(pids) == 4
    for pid in pids:
        found = stat(pid)
        assert (found.parent, found.group, found.session) == (keeper, pid, pid)
    others = [command_line(pid) for pid in children(keeper) if pid not in pids]
    assert len(others) == 3, others  # supervisor, logger, zygote
    assert stat(keeper).session == keeper or stat(keeper).session != stat(os.getpid()).session


def test_a_worker_holds_what_is_its_own_and_nothing_else(pool: RealPool) -> None:
    pool.write_hello("a", "b")
    pool.ok("start")
    items = pool.items()
    for name in ("a", "b"):
        (pid,) = items[name]["pids"]
        held = descriptors(pid)
        kinds = [target.partition(":")[0] for target in held.values()]
        assert held[0] == "/dev/null"
        assert held[1] == held[2]
        assert held[1].startswith("pipe:")
        # Control socket, listener and its duplicate, both ends of the adoption pair; what the loop needs: wake-up pair,
        # pipes of libuv.
        assert kinds.count("socket") <= 7, held
        assert kinds.count("pipe") <= 6, held
        # Besides, the page that it counts on, for its stacks too, and the duplicate of that which Python's mmap keeps.
        files = [target for target in held.values() if target.startswith("/") and target != "/dev/null"]
        assert files == ["/memfd:poolctl-tally (deleted)"] * 3, held
    sockets = [set(descriptors(items[name]["pids"][0]).values()) for name in ("a", "b")]
    shared = {target for target in sockets[0] & sockets[1] if target.startswith(("socket:", "pipe:"))}
    assert not shared, "no socket of one server reaches a worker of another"


def test_only_keeper_supervisor_and_workers_hold_listeners(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    with open("/proc/net/tcp") as table:
        inodes = [
            row.split()[9]
            for row in table
            if row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A"
        ]
    (inode,) = inodes
    known = pool.info()
    (worker,) = pool.items()["web"]["pids"]

    def holders() -> set[int]:
        return {pid for pid in pool.processes() if f"socket:[{inode}]" in descriptors(pid).values()}

    # A process that is being started closes it when it executes its program.
    until(
        lambda: holders() == {known["keeper_pid"], known["supervisor_pid"], worker},
        what=lambda: str(holders()),
    )


def test_restarting_leaks_no_descriptor_and_leaves_no_zombie(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    known = pool.info()
    pids = [known["keeper_pid"], known["supervisor_pid"]]
    workers = pool.items()["web"]["pids"]
    pids += [pid for pid in children(known["keeper_pid"]) if pid not in workers]
    assert len(pids) == 5  # the supervisor is there twice; logger and zygote
    before = {pid: len(descriptors(pid)) for pid in pids}
    for _ in range(4):
        pool.ok("restart")
    # One more than before is the note of what is wanted, which is written after the first change.
    until(lambda: all(len(descriptors(pid)) <= before[pid] + 1 for pid in pids))
    until(lambda: all(map(is_alive, children(known["keeper_pid"]))), what="no zombie")


def test_processes_that_a_worker_started_end_with_it(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.write("forking.py", FORKING)
    pool.replace("hello:app", "forking:app")
    pool.ok("start")
    (worker,) = pool.items()["web"]["pids"]
    of_its_group = [pid for pid in children(worker) if stat(pid).group == worker]
    escaped = [pid for pid in children(worker) if stat(pid).session == pid]
    assert (len(of_its_group), len(escaped)) == (2, 1)
    sockets = {target for target in descriptors(worker).values() if target.startswith("socket:")}
    for child in (*of_its_group, *escaped):
        assert not sockets & {*descriptors(child).values()}, "no port is held by what it has forked"
    os.kill(worker, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in of_its_group))
    # A process that made a session of its own has left: it is a daemon's own business, and no zombie of ours.
    assert is_alive(escaped[0])
    again = until(
        lambda: (item := pool.items()["web"])["ready"] and item["pids"] != [worker] and item["pids"][0]
    )
    left = [*escaped, *[pid for pid in children(again) if stat(pid).session == pid]]
    pool.ok("stop")
    until(lambda: not any(is_alive(pid) for pid in left))


def test_workers_get_the_limit_of_open_files_that_the_pool_was_started_with(
    pool: RealPool, http_get: Any
) -> None:
    port = pool.write_hello()["web"]
    pool.write("limits.py", LIMITS)
    pool.replace("hello:app", "limits:app")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        pool.ok("start")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert http_get(port).json()["open_files"] == [300, hard]
    keeper = pool.info()["keeper_pid"]
    assert resource.prlimit(keeper, resource.RLIMIT_NOFILE) == (hard, hard)
    pool.ok("stop")
    pool.append("limits = { open_files = 512 }\n")
    pool.ok("start")
    assert http_get(port).json()["open_files"] == [512, hard]
