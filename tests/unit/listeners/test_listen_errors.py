"""Who holds a socket: processes by name and pid, users where no more can be seen."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.listeners import listen_errors, sock_diag
from tests.deadline import wait_until

LISTEN = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def find(place: listen_errors.Place) -> list[listen_errors.Holder]:
    return listen_errors.find_holders([place])[place]


@pytest.mark.parametrize("how", ["script", "command", "module"])
def test_python_program_is_named_by_its_module_or_script(how: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(LISTEN)
    arguments, name = {
        "script": ([str(tmp_path / "shop.py")], "shop.py"),
        "command": (["-c", LISTEN], "python"),
        "module": (["-m", "shop"], "python -m shop"),
    }[how]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            (found,) = find(("127.0.0.1", port))
        finally:
            process.kill()
    assert found.pid == process.pid
    assert found.name.startswith(name)
    assert repr(found) == f"{found.name} (pid {process.pid})"


def test_listeners_win_over_connections_from_the_same_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            (found,) = find(("127.0.0.1", port))
    assert (found.pid, found.listens) == (os.getpid(), True)


def test_outgoing_connection_from_the_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # From an address that no other program of this machine uses.
        client = socket.create_connection(listener.getsockname(), source_address=("127.77.0.8", 0))
        place = client.getsockname()
        with listener.accept()[0]:
            (found,) = find(place)
            assert (found.pid, found.listens) == (os.getpid(), False)
            client.close()
        # Who closes first leaves the kernel something to keep for a minute.
        (found,) = find(place)
        assert (found.pid, found.listens, found.name) == (None, False, "")


def test_search_finds_many_places_at_once_and_caches_them(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    # Other programs may have connections from a port of 127.0.0.1 that is free to be listened on.
    free = ("127.77.0.9", free_port())
    scans = []
    owners = listen_errors._owners
    monkeypatch.setattr(
        listen_errors, "_owners", lambda wanted, until: scans.append(len(wanted)) or owners(wanted, until)
    )
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(20)]
        places = [each.getsockname() for each in listeners]
        for _ in range(2):
            found = listen_errors.find_holders([*places, free, "/no/such/path"])
            assert {place: [each.pid for each in found[place]] for place in places} == {
                place: [os.getpid()] for place in places
            }
            assert found[free] == found["/no/such/path"] == []
    assert scans == [20, 20]


def test_search_ends_in_time_with_partial_results(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(
            listen_errors, "_sockets_of", lambda pid, missing, until: time.sleep(0.06) or set()
        )
        monkeypatch.setattr(listen_errors, "MOST_SECONDS", 0.05)
        began = time.monotonic()
        (found,) = find(listener.getsockname())
        assert time.monotonic() - began < 5
    assert (found.pid, repr(found)) == (None, f"a process of user {pwd.getpwuid(os.getuid()).pw_name}")


def test_search_without_sock_diag_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "_NETLINK_SOCK_DIAG", 31)  # a protocol that there is not
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert find(listener.getsockname()) == []


def test_holder_that_belongs_to_a_pool_has_the_files_of_the_pool(tmp_path: Path) -> None:
    (tmp_path / "poolctl").mkdir()
    program = tmp_path / "poolctl" / "bootstrap.py"
    program.write_text(LISTEN)
    plan = json.dumps(
        {"supervisor": ["python", "-P", "bootstrap.py", "supervisor", "/run/x", "/srv/a b.toml"]}
    )
    for arguments, files in {
        ("supervisor", "/run/x", "/srv/a.toml", "--calm"): ("/srv/a.toml",),
        ("keeper", "/run/x", plan): ("/srv/a b.toml",),
        ("keeper", "/run/x", "3"): (),
        ("worker", "zygote"): None,
    }.items():
        with subprocess.Popen(
            [sys.executable, "-P", str(program), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            try:
                (found,) = find(("127.0.0.1", int(process.stdout.readline())))
            finally:
                process.kill()
        assert (found.pid, found.pool) == (process.pid, files)


def test_listener_on_another_address_of_the_port_does_not_conflict() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert find(("127.0.0.2", port)) == []
        assert len(find(("0.0.0.0", port))) == 1
        assert len(find(("::", port))) == 1
        assert len(find(("localhost", port))) == 1


def test_dual_stack_listener_conflicts_with_ipv4() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        assert find(("127.0.0.1", listener.getsockname()[1]))


def test_free_port_has_no_holder(free_port: Callable[[], int]) -> None:
    port = free_port()
    # Another test that looks for a free port binds it for a moment.
    wait_until(lambda: find(("127.0.0.1", port)) == [])


def test_socket_of_an_invisible_process_is_attributed_to_its_user() -> None:
    assert repr(listen_errors._of_user(0)) == "a process of user root"
    assert repr(listen_errors._of_user(-1)) == "a process of another user"
    assert repr(listen_errors._of_user(4_000_000_001)) == "a process of user 4000000001"


def test_process_name_cannot_control_a_terminal() -> None:
    assert repr(listen_errors.Holder("a\x1b[2Jb", 1, 0)) == "a?[2Jb (pid 1)"


def test_exited_process_has_no_name() -> None:
    assert listen_errors._process_name(2**22 + 1) == "a process"
    assert listen_errors._sockets_of(2**22 + 1, {"socket:[1]": 1}, time.monotonic() + 1) == set()
    assert listen_errors._pool_of(2**22 + 1) == (None, "")


def test_program_that_is_not_python_has_its_own_name() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            # Between fork and exec the child still is this interpreter.
            wait_until(
                lambda: listen_errors._process_name(process.pid) == "sleep", what="the child's own name"
            )
        finally:
            process.kill()


def test_addresses_of_this_machine_include_loopback() -> None:
    assert listen_errors.local_addresses()[0].count(".") == 3
    assert "127.0.0.1" in listen_errors.local_addresses()


def test_missing_proc_tables_give_no_addresses() -> None:
    assert list(listen_errors._table("/proc/net/none")) == []
