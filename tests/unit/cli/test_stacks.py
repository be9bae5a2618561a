"""`poolctl stacks`: each worker with its threads and tasks."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.control.client import Client
from poolctl.control.pool_client import PoolClient
from tests.stand_in import always, item

from .conftest import Command, Supervised

PAY: dict[str, Any] = {"function": "pay", "file": "shop/\x1b[0mpay.py", "line": 42, "library": False}
HUNG: dict[str, Any] = {
    "name": "users", "worker": "users.1.0", "pid": 7, "source": "python", "problem": "",
    "place": "pay (shop/pay.py:42)", "threads": [{"name": "MainThread", "main": True, "frames": [PAY]}],
    "tasks": [{"count": 3, "names": ["a", "b"], "waits": "waits for a Future", "frames": [PAY]}], "kernel": [],
}  # fmt: skip
PROGRAM: dict[str, Any] = {
    "name": "db", "worker": "db.1.0", "pid": 8, "problem": "a program",
    "kernel": [{"tid": 8, "name": "db", "state": "S", "wchan": "ep_poll", "syscall": "232", "stack": ["do_poll"]}],
}  # fmt: skip


def test_each_worker_is_shown_with_its_threads_tasks_or_kernel_threads(
    poolctl: Command, supervised: Supervised
) -> None:
    with supervised(always(HUNG, PROGRAM)) as requests:
        said = poolctl("stacks", "users", "db")
    assert said.out == (
        "users.1.0 (pid 7)\n  main thread:\n    pay (shop/\\x1b[0mpay.py:42)\n"
        "  3 tasks a, b and 1 more, waits for a Future:\n    pay (shop/\\x1b[0mpay.py:42)\n\n"
        "db.1.0 (pid 8)\n  a program\n  kernel, thread 8 db: state S, waits in ep_poll, system call 232\n    do_poll\n"
    )
    assert [verb for verb, _ in requests if verb != "ping"] == ["stacks"]


def test_forms_for_scripts_and_for_python(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(HUNG)):
        assert poolctl("stacks", "-o", "json").json["items"] == [HUNG]
        assert poolctl("stacks", "-o", "name").out == "users.1.0\n"
        assert poolctl("stacks", "-o", "worker,place").out == "users.1.0\tpay (shop/pay.py:42)\n"
        pool = PoolClient(Client(find_pool(Place()).socket))
        assert pool.stacks("users")["items"] == [HUNG]


def test_show_and_verbose_status_have_the_stacks_of_a_worker_that_was_not_ready(
    poolctl: Command, supervised: Supervised
) -> None:
    late = item("users", ready=False, state="failed", stacks={**HUNG, "tasks": []})
    lines = ["worker users.1.0 (pid 7)", "main thread:", r"  pay (shop/\x1b[0mpay.py:42)"]
    with supervised(always(late, item("b", stacks=HUNG), summary={"name": "shop"})):
        shown = poolctl("show", "users").out
        short, verbose = poolctl("status").out, poolctl("status", "-v").out
    assert "\n".join([f"  hung       {lines[0]}", *(f"{'':13}{line}" for line in lines[1:])]) in shown
    assert verbose == short + "".join(f"    {line}\n" for line in lines)


def test_head_of_a_worker_is_bold_in_colours_and_has_its_pid_if_it_is_known(
    poolctl: Command, supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with supervised(always({**PROGRAM, "pid": None, "kernel": []})):
        assert poolctl("stacks").out == "\x1b[1mdb.1.0\x1b[0m\n  a program\n"


def test_errors_are_printed_without_a_table(poolctl: Command, supervised: Supervised) -> None:
    error = {"code": 4, "error": "E", "message": "no server matches"}
    with supervised(always(exit_code=4, errors=[error])):
        assert poolctl("stacks") == (4, "", "error: no server matches\n")
