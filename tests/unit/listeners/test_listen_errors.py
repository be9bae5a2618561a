"""Who holds a socket: processes by name and pid, users where no more can be seen."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.address import parse
from poolctl.listeners import listen_errors
from poolctl.listeners.listen_errors import Holder
from poolctl.listeners.open_listener import ListenError, close_listener, open_listener
from tests.deadline import wait_until
from tests.sandbox import FILES_AND_NETWORK, NO_NETLINK, run_in_namespace, run_without

LISTEN = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def find(place: listen_errors.Place, max_seconds: float = 60) -> list[listen_errors.Holder]:
    """The processes at the place: on a busy machine the search takes longer than a user should wait."""
    return listen_errors.find_holders([place], max_seconds)[place]


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


def test_search_finds_many_places_at_once(free_port: Callable[[], int]) -> None:
    # Other programs may have connections from a port of 127.0.0.1 that is free to be listened on.
    free = ("127.77.0.9", free_port())
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(20)]
        places = [each.getsockname() for each in listeners]
        found = listen_errors.find_holders([*places, free, "/no/such/path"], 60)
        assert {place: [each.pid for each in found[place]] for place in places} == {
            place: [os.getpid()] for place in places
        }
        assert found[free] == found["/no/such/path"] == []


def test_search_ends_when_its_time_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert find(listener.getsockname(), 0) == []


def test_search_without_sock_diag_finds_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert run_without(NO_NETLINK, lambda: find(listener.getsockname())) == []


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


def test_process_name_cannot_control_a_terminal() -> None:
    assert repr(listen_errors.Holder("a\x1b[2Jb", 1, 0)) == "a?[2Jb (pid 1)"


def test_addresses_of_this_machine_include_loopback() -> None:
    assert listen_errors.local_addresses()[0].count(".") == 3
    assert "127.0.0.1" in listen_errors.local_addresses()


TCP = parse("127.0.0.1:8080")
TAKEN = listen_errors.address_in_use_error(TCP, ("127.0.0.1", 8080))


@pytest.mark.parametrize(
    ("number", "host", "message", "hint"),
    [
        (
            errno.EADDRINUSE,
            "127.0.0.1",
            "port 8080 is in use",
            "ss -tanp 'sport = :8080', or choose another port",
        ),
        (errno.EADDRNOTAVAIL, "10.1.2.3", "10.1.2.3 is not an address of this machine", "127.0.0.1"),
        (errno.EAFNOSUPPORT, "::1", "no support for the address ::1", "use an IPv4 address"),
        (errno.EMFILE, "127.0.0.1", "127.0.0.1:8080 cannot be opened: Too many open files", "ulimit -n"),
        (errno.ENFILE, "127.0.0.1", "cannot be opened", "fs.file-max"),
        (errno.EACCES, "127.0.0.1", "127.0.0.1:8080 cannot be opened: Permission denied", ""),
        (errno.EPERM, "127.0.0.1", "127.0.0.1:8080 cannot be opened: Operation not permitted", "seccomp"),
    ],
)
def test_error_of_a_port_is_explained_with_its_fix(number: int, host: str, message: str, hint: str) -> None:
    error = listen_errors.port_error(TCP, host, OSError(number, os.strerror(number)))
    assert message in error.message
    assert hint in error.hint
    assert bool(error.hint) is bool(hint)
    assert error.bind == TCP.key
    assert error.taken == (("127.0.0.1", 8080) if number == errno.EADDRINUSE else None)


def test_privileged_port_is_explained_with_the_systems_limit() -> None:
    def work() -> None:
        codecs.lookup("ascii")  # nobody may be unable to read Python's library
        os.seteuid(65534)
        try:
            with pytest.raises(ListenError) as caught:
                open_listener(parse("*:89"))
            close_listener(open_listener(parse("*:90")))
        finally:
            os.seteuid(0)
        assert caught.value.message == "port 89 is privileged: only root may open ports below 90"
        assert "take a port from 90 up" in caught.value.hint
        assert "ip_unprivileged_port_start=89" in caught.value.hint

    limit = "echo 90 > /proc/sys/net/ipv4/ip_unprivileged_port_start"
    run_in_namespace(limit, work, FILES_AND_NETWORK)


def test_unix_socket_has_its_own_command() -> None:
    path = listen_errors.address_in_use_error(parse("unix:/a/b"), "/a/b")
    assert path.message == "the Unix socket /a/b is in use"
    assert "ss -lxp 'src /a/b', or choose another path" in path.hint
    unknown = listen_errors.unresolved_host_error(parse("nowhere:80"), "no such host")
    assert unknown.message == "host name 'nowhere' cannot be resolved: no such host"
    assert listen_errors.listen_error(TCP, "it failed", OSError("a reason")).message == "it failed: a reason"


ME = os.geteuid()


@pytest.mark.parametrize(
    ("holders", "by", "fix"),
    [
        ([Holder("nginx", 7, ME)], "by nginx (pid 7)", "stop it (kill 7), or choose another port"),
        ([Holder("nginx", 7, ME), Holder("x", 8, ME)], "by nginx (pid 7) and 1 more", "kill 7"),
        ([Holder("a process of root", None, 0)], "by a process of root", "see which (as root): ss -tanp"),
        ([Holder("curl", 7, ME, listens=False)], "by a connection of curl (pid 7)", "wait until it ends: ss"),
        ([Holder("", None, ME, listens=False)], "by a connection that has ended", "a minute: ss -tanp"),
        ([Holder("python", 7, ME, pool=())], "by a pool inside another program, python (pid 7)", "stop that"),
        (
            [Holder("keeper", 7, ME, pool=("/a/pool.toml", "/b c.toml"))],
            "by the pool of /a/pool.toml, /b c.toml",
            "stop it: poolctl -c /a/pool.toml -c '/b c.toml' stop, or choose another port",
        ),
        (
            [Holder("keeper", 7, 0 if ME else 1, pool=("/a",), runtime="/run/x y")],
            "by the pool of /a",
            f"stop it as {'root' if ME else 'daemon'}: POOLCTL_RUNTIME_DIR='/run/x y' poolctl -c /a stop",
        ),
        ([Holder("keeper", 7, -1, pool=("/a",))], "by the pool of /a", "stop it: poolctl -c /a stop"),
    ],
)
def test_address_in_use_is_explained_with_its_holder_and_how_to_end_it(
    holders: list[Holder], by: str, fix: str
) -> None:
    found = listen_errors.with_holders(TAKEN, holders)
    assert found.message == f"port 8080 is in use {by}"
    assert fix in found.hint
    assert (found.bind, found.taken) == (TAKEN.bind, TAKEN.taken)


def test_error_without_a_holder_or_a_place_stays_as_it_is() -> None:
    other = listen_errors.ListenError("it failed")
    assert listen_errors.with_holders(TAKEN, []) is TAKEN
    assert listen_errors.with_holders(other, [Holder("nginx", 7, ME)]) is other


def test_every_address_in_use_gets_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken = listen_errors.address_in_use_error(parse(f"127.0.0.1:{port}"), ("127.0.0.1", port))
        other = listen_errors.ListenError("it failed")
        named, same = listen_errors.name_holders([taken, other], 60)
    assert f"(pid {os.getpid()})" in named.message
    assert same is other
