"""A server that becomes this process: its selection, its listeners, and the program that takes over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli import foreground_server
from poolctl.cli.foreground_server import ForegroundServer, prepare_single_server
from poolctl.cli.options import Selection
from poolctl.cli.outcome import Failure, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.errors import ControlError, PoolValidateError
from tests.commands import parsed
from tests.ports import claim_port
from tests.stand_in import always, item

from .conftest import Command, Supervised

# In a process with threads, pytest's own; the child replaces itself at once.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

POOL = """\
[[server]]
name = "users"
bind = "127.0.0.1:%d"
command = [%r, "-c", "%s", "{fd}"]
depends_on = ["db"]
env = { COLOUR = "red" }

[[server]]
name = "db"
command = ["sleep", "60"]
"""
# What a program sees of its process.
SEEN = (
    "import json, os, socket, sys; s = socket.socket(fileno=3); print(json.dumps([os.getpid(), sys.argv[1], "
    "s.getsockname()[1], os.get_blocking(3), os.environ.get('COLOUR'), os.environ.get('LISTEN_FDS'), "
    "os.environ.get('KEY')]))"
)


@pytest.fixture
def port(directory: Path) -> int:
    port = claim_port()
    (directory / "pool.toml").write_text(POOL % (port, sys.executable, SEEN))
    return port


def request(*words: str) -> tuple[Selection, PoolRef]:
    given = parsed(["run", *words]).params
    return Selection(**{each.name: given[each.name] for each in fields(Selection)}), find_pool(Place())


def in_a_fork(work: Callable[[], Any]) -> tuple[int, bytes, bytes]:
    """The pid of a process that does the work, and what it wrote to its standard streams."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(out_end, 1)
            os.dup2(err_end, 2)
            os.closerange(3, 200)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(99)
    os.close(out_end)
    os.close(err_end)
    with open(out, "rb") as first, open(err, "rb") as second:
        written = first.read(), second.read()
    os.waitpid(pid, 0)
    return pid, *written


def test_selected_server_is_returned_with_the_addresses_of_others(port: int) -> None:
    server = prepare_single_server(*request("users"), "poolctl run --debug")
    assert (server.name, server.address.port) == ("users", port)


@pytest.mark.parametrize(
    ("words", "count"), [([], 2), (["users", "db"], 2), (["--tag", "x", "--allow-empty"], 0)]
)
def test_anything_but_one_server_is_a_usage_error(port: int, words: list[str], count: int) -> None:
    with pytest.raises(UsageError) as caught:
        prepare_single_server(*request(*words), "poolctl run --debug")
    assert caught.value.message == f"--debug runs one server, and {count} are selected"
    assert caught.value.hint == "poolctl run --debug NAME"


def test_server_that_this_machine_cannot_run_is_refused_with_its_own_problems_only(
    port: int, directory: Path
) -> None:
    text = (directory / "pool.toml").read_text()
    (directory / "pool.toml").write_text(text.replace('"sleep"', '"no-such-program"'))
    assert prepare_single_server(*request("users"), "run").name == "users"
    with pytest.raises(PoolValidateError, match="the server cannot run") as caught:
        prepare_single_server(*request("db"), "run")
    (problem,) = caught.value.exceptions
    assert "no-such-program" in str(problem)


@pytest.mark.parametrize("state", ["running", "starting", "backoff", "sleeping", "draining"])
def test_server_that_runs_in_the_pool_is_refused(port: int, supervised: Supervised, state: str) -> None:
    with supervised(always(item("users", state=state))) as requests, pytest.raises(ControlError) as caught:
        prepare_single_server(*request("users"), "run")
    assert caught.value.exit_code == 8
    assert caught.value.message.startswith("users is ")
    assert caught.value.hint == "poolctl stop users"
    assert requests[-1] == ("list", {"selector": {"targets": ["users"]}})


@pytest.mark.parametrize("state", ["stopped", "failed", "disabled", "completed"])
def test_server_that_rests_in_the_pool_is_free(port: int, supervised: Supervised, state: str) -> None:
    with supervised(always(item("users", state=state, ready=False))):
        assert prepare_single_server(*request("users"), "run").name == "users"


def test_port_of_its_own_choice_is_chosen(directory: Path) -> None:
    (directory / "pool.toml").write_text(
        '[[server]]\nname = "a"\nbind = "127.0.0.1:auto"\ncommand = ["sleep", "1"]\n'
    )
    server = prepare_single_server(*request("a"), "run")
    assert server.address.port
    assert prepare_single_server(*request("a"), "run").address.port == server.address.port


def test_prepared_server_listens_and_its_process_is_the_first_worker(port: int) -> None:
    foreground = ForegroundServer.with_open_listeners(prepare_single_server(*request("users"), "run"))
    (listener,) = foreground.listeners
    assert (listener.getsockname(), foreground.tls, foreground.spec["index"]) == (("127.0.0.1", port), [], 0)
    with socket.create_connection(("127.0.0.1", port)):
        pass
    listener.close()
    assert ForegroundServer.with_open_listeners(prepare_single_server(*request("db"), "run")).listeners == []


def test_address_in_use_ends_the_command_with_its_reason(port: int) -> None:
    server = prepare_single_server(*request("users"), "run")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(Failure) as caught:
        ForegroundServer.with_open_listeners(server)
    (error,) = caught.value.outcome.errors
    assert caught.value.outcome.exit_code == 1
    assert error.message.startswith("users: ")
    assert str(port) in error.message
    assert "is in use" in error.message


def test_program_has_its_listener_from_3_on_and_none_of_the_pools_own_variables(
    port: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (directory / "pool.toml").read_text()
    (directory / "pool.toml").write_text(
        f'{text}\n[[server]]\nname = "tls"\nbind = ":1"\napp = "a:b"\ntls = {{ cert = "c", password_env = "KEY" }}\n'
    )
    monkeypatch.setenv("KEY", "secret")

    def become() -> None:
        ForegroundServer.with_open_listeners(prepare_single_server(*request("users"), "run")).become(
            "worker", "debug"
        )

    pid, out, err = in_a_fork(become)
    assert out, err
    own_pid, *seen = json.loads(out)
    assert own_pid != pid, "a child of the process"
    assert seen == ["3", port, True, "red", "1", None]


def test_program_that_is_gone_ends_the_process_with_the_shells_status(port: int) -> None:
    server = prepare_single_server(*request("users"), "run").model_copy(
        update={"command": ("/no/such/program",)}
    )

    def become() -> None:
        ForegroundServer.with_open_listeners(server).become("worker")

    _, out, err = in_a_fork(become)
    assert (out, err) == (b"", b"cannot run '/no/such/program': No such file or directory\n")


def test_app_is_run_by_its_interpreter_with_specification_listeners_and_more(
    directory: Path, free_port: Callable[..., int]
) -> None:
    port = free_port()
    python = directory / "python"
    script = (
        "import json, os, sys; json.dump([sys.argv[1:], sorted(int(fd) for fd in os.listdir('/proc/self/fd'))], "
        "sys.stdout)"
    )
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -c "{script}" "$@"\n')
    python.chmod(0o755)
    (directory / "pool.toml").write_text(
        f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "json:loads"\n'
    )
    server = prepare_single_server(*request("web"), "run").model_copy(update={"python": str(python)})

    def become() -> None:
        one, other = socket.socketpair()
        assert other.fileno() >= 0
        ForegroundServer.with_open_listeners(server).become("worker", "debug", more=[one])

    _, out, err = in_a_fork(become)
    assert out, err
    arguments, fds = json.loads(out)
    # The specification is not counted; the listener and one more are.
    assert arguments[-3:] == ["worker", "debug", "2"]
    first = foreground_server.SPEC_FD
    assert {first, first + 1, first + 2} <= {*fds}


@pytest.mark.parametrize(
    "option",
    [["--watch"], ["-o", "json"], ["--log-format", "json"], ["--stop-timeout", "1s"], ["--timeout", "1s"],
     ["--no-deps"]],
    ids=lambda option: option[0],
)  # fmt: skip
def test_options_of_a_pool_are_refused_with_debug(poolctl: Command, option: list[str]) -> None:
    said = poolctl("run", "--debug", "users", *option)
    assert said.code == 2
    assert f"--debug and {option[0]} cannot be combined" in said.err


def test_debug_takes_no_command(poolctl: Command) -> None:
    said = poolctl("run", "--debug", "users", "--", "true")
    assert (said.code, "--debug and a command cannot be combined" in said.err) == (2, True)


WHOLE = "users on http://127.0.0.1:{} runs in this terminal, Ctrl-C stops it; dependencies not started: db\n"


@pytest.mark.parametrize(("words", "announced"), [([], WHOLE), (["-q"], "")])
def test_debug_announces_the_server_and_runs_it(port: int, words: list[str], announced: str) -> None:
    command = [sys.executable, "-m", "poolctl", "run", "--debug", "users", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        written, said = process.communicate(timeout=60)
    assert said == announced.format(port)
    assert json.loads(written)[2] == port
