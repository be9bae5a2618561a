"""Who holds a socket: processes by name and pid, users where no more can be seen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.listeners import holder
from tests.deadline import wait_until

LISTEN = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["script", "command", "module"])
def test_a_python_program_is_called_by_what_it_runs(how: str, tmp_path: Path) -> None:
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
            (found,) = holder.find_tcp("127.0.0.1", port)
        finally:
            process.kill()
    assert found.pid == process.pid
    assert found.name.startswith(name)
    assert repr(found) == f"{found.name} (pid {process.pid})"


def test_listeners_win_over_connections_from_the_same_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            rows = list(holder._conflicting_rows("127.0.0.1", port))
            assert len(rows) == 2
            (found,) = holder.find_tcp("127.0.0.1", port)
    assert found.pid == os.getpid()


def test_another_address_of_the_same_port_is_not_in_the_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert holder.find_tcp("127.0.0.2", port) == []
        assert len(holder.find_tcp("0.0.0.0", port)) == 1
        assert len(holder.find_tcp("::", port)) == 1
        assert len(holder.find_tcp("localhost", port)) == 1


def test_an_ipv6_listener_for_both_versions_is_in_the_way_of_ipv4() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        assert holder.find_tcp("127.0.0.1", listener.getsockname()[1])


def test_a_free_port_has_no_holder() -> None:
    assert holder.find_tcp("127.0.0.1", 1) == []


def test_a_mapped_ipv4_address_is_an_ipv4_address() -> None:
    assert holder._address("0000000000000000FFFF00000100007F") == bytes([127, 0, 0, 1])


def test_a_socket_of_no_visible_process_is_said_to_be_its_users() -> None:
    (found,) = holder._owners({"999999999999": 0})
    assert (repr(found), found.pid) == ("a process of user root", None)
    (unknown,) = holder._owners({"999999999999": -1})
    assert repr(unknown) == "a process of another user"
    (nameless,) = holder._owners({"999999999999": 4_000_000_001})
    assert repr(nameless) == "a process of user 4000000001"


def test_a_process_that_is_gone_has_no_name() -> None:
    assert holder._process_name(2**22 + 1) == "a process"
    assert holder._sockets_of(2**22 + 1, {}) == set()


def test_a_process_that_is_no_interpreter_is_called_by_its_own_name() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            # Between fork and exec the child still is this interpreter.
            wait_until(lambda: holder._process_name(process.pid) == "sleep", what="the child's own name")
        finally:
            process.kill()


def test_the_addresses_of_this_machine_include_loopback() -> None:
    assert holder.local_addresses()[0].count(".") == 3
    assert "127.0.0.1" in holder.local_addresses()


def test_a_system_without_these_tables_has_no_answers() -> None:
    assert list(holder._table("/proc/net/none")) == []
