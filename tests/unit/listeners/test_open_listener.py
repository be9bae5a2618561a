"""Sockets that are opened or inherited, and the connections accepted from them."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from poolctl.address import parse
from poolctl.listeners.listen_errors import (
    Holder,
    Place,
    address_in_use_error,
    name_holders,
    port_error,
    with_holders,
)
from poolctl.listeners.open_listener import (
    BACKLOG,
    ListenError,
    SocketAccess,
    change_access,
    close_listener,
    describe,
    duplicate_inherited_listeners,
    inherited_descriptors,
    is_live,
    listener_and_connection_descriptors,
    listens,
    open_listener,
    refuse_new_connections,
    remove_socket_file,
    resolve_bind_targets,
    socket_file_identity,
)
from tests import moments
from tests.descriptors import no_descriptor_left
from tests.ports import claim_port
from tests.programs import program
from tests.sandbox import BIND, CHOWN, NO_IPV6, NO_NETLINK, UNLINKAT, run_with_hosts, run_without

FreePort = Callable[[], int]


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
NOBODY = 65534


def rights(access: SocketAccess) -> set[tuple[str, int]]:
    """Whom the mode lets connect: ("user", uid), ("group", gid), or everybody."""
    assert access.owner is not None
    (uid, gid), mode = access.owner, access.mode
    bits = ((0o200, ("user", uid)), (0o020, ("group", gid)), (0o002, ("all", 0)))
    found = {right for bit, right in bits if mode & bit}
    return found | {("user", uid), ("group", gid)} if ("all", 0) in found else found


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@contextmanager
def opened(text: str) -> Iterator[list[socket.socket]]:
    sockets = open_listener(parse(text))
    try:
        yield sockets
    finally:
        close_listener(sockets)


def accepted_option(listener: socket.socket, level: int, option: int) -> int:
    """The value of an option on a socket that was accepted from the listener."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as client:
        client.connect(listener.getsockname())
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            return accepted.getsockopt(level, option)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=needs_ipv6)])
def test_accepted_sockets_inherit_no_delay(host: str, free_port: FreePort) -> None:
    with opened(f"{host}:{free_port()}") as (listener,):
        assert accepted_option(listener, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_listeners_are_non_blocking_and_not_inherited_by_programs(free_port: FreePort) -> None:
    with opened(f"127.0.0.1:{free_port()}") as (listener,):
        assert not listener.getblocking()
        assert not listener.get_inheritable()


def test_backlog_holds_connections_that_are_not_accepted(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"127.0.0.1:{port}"):
        clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(200)]
        for client in clients:
            client.close()
    assert BACKLOG >= 200


@needs_ipv6
def test_address_without_a_host_opens_a_listener_for_each_ip_version(free_port: FreePort) -> None:
    port = free_port()
    with opened(f":{port}") as sockets:
        assert [describe(sock) for sock in sockets] == [f"0.0.0.0:{port}", f"[::]:{port}"]
        assert sockets[1].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert accepted_option(sockets[1], socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_explicit_ipv4_wildcard_opens_ipv4_only(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"*:{port}") as sockets:
        assert [describe(sock) for sock in sockets] == [f"0.0.0.0:{port}"]


@needs_ipv6
def test_ipv6_wildcard_accepts_ipv4_connections_too(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"[::]:{port}") as (listener,):
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        socket.create_connection(("127.0.0.1", port), timeout=60).close()


@needs_ipv6
def test_single_ipv6_address_accepts_nothing_else(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"[::1]:{port}") as (listener,):
        assert describe(listener) == f"[::1]:{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)


def test_localhost_does_not_open_addresses_of_the_name_that_others_can_reach(tmp_path: Path) -> None:
    names = {"localhost": ["10.0.0.7", "127.0.1.1", "127.0.0.1"]}
    targets = run_with_hosts(tmp_path, names, lambda: resolve_bind_targets(parse("localhost:80")))
    assert {target.host for target in targets} == {"127.0.1.1", "127.0.0.1"}


def test_localhost_without_a_loopback_address_is_reported(tmp_path: Path) -> None:
    names = {"localhost": ["10.0.0.7"]}
    with pytest.raises(ListenError, match="localhost has no loopback address on this machine") as caught:
        run_with_hosts(tmp_path, names, lambda: resolve_bind_targets(parse("localhost:80")))
    assert (caught.value.bind, "/etc/hosts" in caught.value.hint) == ("localhost:80", True)


def test_address_without_a_host_opens_ipv4_alone_on_a_machine_without_ipv6(
    free_port: FreePort, tmp_path: Path
) -> None:
    port = free_port()

    def work() -> None:
        with opened(f":{port}") as sockets:
            assert [sock.family for sock in sockets] == [socket.AF_INET]
        with pytest.raises(ListenError, match=r"\[::1\]:") as caught, no_descriptor_left():
            open_listener(parse(f"[::1]:{port}"))
        assert "IPv4" in caught.value.hint
        with pytest.raises(ListenError) as caught:
            open_listener(parse(f"shop:{port}"))
        assert "IPv4" in caught.value.hint

    names = {"shop": ["fd00::1", "fd00::2"]}
    run_with_hosts(tmp_path, names, lambda: run_without(NO_IPV6, work))


def test_listener_that_refuses_takes_no_connection_though_another_process_holds_it(
    free_port: FreePort,
) -> None:
    port = free_port()
    with opened(f"127.0.0.1:{port}") as sockets, sockets[0].dup():
        refuse_new_connections(sockets)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)
        closed = socket.socket()
        closed.close()
        refuse_new_connections([closed])


def test_address_with_connections_in_time_wait_opens_again_at_once(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"127.0.0.1:{port}") as (listener,):
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        listener.setblocking(True)
        listener.accept()[0].close()  # the server's side closes first, and lingers in TIME_WAIT
        client.close()
    with opened(f"127.0.0.1:{port}"):
        pass


def test_port_in_use_error_names_the_process_that_holds_it(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"127.0.0.1:{port}"):
        with pytest.raises(ListenError, match=f"port {port} is in use$") as caught:
            open_listener(parse(f"127.0.0.1:{port}"))
        assert f"ss -tanp 'sport = :{port}'" in caught.value.hint
        (error,) = name_holders([caught.value], 60)
    assert error.message.startswith(f"port {port} is in use by")
    assert f"(pid {os.getpid()})" in error.message
    assert error.bind == f"127.0.0.1:{port}"
    assert f"kill {os.getpid()}" in error.hint


def test_port_in_use_error_names_the_holder_of_a_wildcard(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"0.0.0.0:{port}"):
        with pytest.raises(ListenError) as caught:
            open_listener(parse(f"127.0.0.1:{port}"))
        assert f"(pid {os.getpid()})" in name_holders([caught.value], 60)[0].message


@pytest.mark.parametrize(
    ("found", "message", "hint"),
    [
        (Holder("nginx", 7, 0), "port 80 is in use by nginx (pid 7)", "stop it (kill 7), or choose another port"),
        (
            Holder("a process of user web", None, 1, listens=False),
            "port 80 is in use by a connection of a process of user web",
            "wait until it ends: ss -tanp 'sport = :80', or choose another port",
        ),
        (
            Holder("", None, 0, listens=False),
            "port 80 is in use by a connection that has ended",
            "wait until the kernel forgets it, a minute: ss -tanp 'sport = :80', or choose another port",
        ),
        (
            Holder("poolctl-keeper", 7, os.geteuid(), pool=("/srv/a.toml", "/srv/b c.toml")),
            "port 80 is in use by the pool of /srv/a.toml, /srv/b c.toml",
            "stop it: poolctl -c /srv/a.toml -c '/srv/b c.toml' stop, or choose another port",
        ),
        (
            Holder("shop", 7, 4_000_000_001, pool=("/srv/a.toml",)),
            "port 80 is in use by the pool of /srv/a.toml",
            "stop it as 4000000001: poolctl -c /srv/a.toml stop, or choose another port",
        ),
        (
            Holder("shop", 7, os.geteuid(), pool=("/srv/a.toml",), runtime="/srv/my run"),
            "port 80 is in use by the pool of /srv/a.toml",
            "stop it: POOLCTL_RUNTIME_DIR='/srv/my run' poolctl -c /srv/a.toml stop, or choose another port",
        ),
        (
            Holder("poolctl-keeper", 7, 0, pool=()),
            "port 80 is in use by a pool inside another program, poolctl-keeper (pid 7)",
            "stop that program, or choose another port",
        ),
    ],
)  # fmt: skip
def test_holder_of_a_taken_port_decides_the_hint(found: Holder, message: str, hint: str) -> None:
    error = with_holders(address_in_use_error(parse("127.0.0.1:80"), ("127.0.0.1", 80)), [found])
    assert (error.message, error.hint) == (message, hint)


@needs_ipv6
def test_failure_at_the_second_socket_closes_the_first(free_port: FreePort) -> None:
    port = free_port()
    with opened(f"[::1]:{port}"):
        with pytest.raises(ListenError, match="in use"):
            open_listener(parse(f":{port}"))
        with opened(f"127.0.0.1:{port}"):
            pass


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        ("203.0.113.9:80", r"203\.0\.113\.9 is not an address of this machine", "127.0.0.1"),
        ("nowhere.invalid:80", r"host name 'nowhere\.invalid' cannot be resolved", "/etc/hosts"),
        ("127.0.0.1:auto", "no port was chosen", ""),
        ("job:migrate", "not an address to listen on", ""),
    ],
)
def test_address_that_cannot_be_opened_is_an_error_with_the_fix(
    address: str, message: str, hint: str
) -> None:
    with pytest.raises(ListenError, match=message) as caught:
        open_listener(parse(address))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("address", "error", "message", "hint"),
    [
        ("127.0.0.1:1", OSError(errno.EACCES, "denied"), "privileged", "ip_unprivileged_port_start"),
        ("[::1]:8080", OSError(errno.EAFNOSUPPORT, "no"), "", "IPv4"),
        ("127.0.0.1:8080", OSError(errno.EMFILE, "many"), "8080 cannot be opened: Too many open files", "ulimit -n"),
        ("127.0.0.1:8080", OSError("odd"), "8080 cannot be opened: odd", ""),
    ],
    ids=["privileged", "without IPv6", "descriptors", "without errno"],
)  # fmt: skip
def test_error_of_the_system_is_explained(address: str, error: OSError, message: str, hint: str) -> None:
    found = port_error(parse(address), parse(address).host, error)
    assert (message in found.message, hint in found.hint) == (True, True)


def test_target_keeps_the_interface_of_a_link_local_address() -> None:
    (target,) = resolve_bind_targets(parse("[fe80::1%lo]:80"))
    assert target.sockaddr(80) == ("fe80::1", 80, 0, socket.if_nametoindex("lo"))


class TestUnixSockets:
    def test_are_private_unless_a_mode_is_given(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        with opened(f"unix:{path}") as (listener,):
            assert describe(listener) == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
    def test_get_the_given_mode_whatever_the_umask(self, tmp_path: Path, mode: int, umask: int) -> None:
        path = tmp_path / "a.sock"
        before = os.umask(umask)
        try:
            with no_descriptor_left():
                sockets = open_listener(parse(f"unix:{path}"), access=SocketAccess(mode))
                close_listener(sockets)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode

    def test_have_the_group_of_a_directory_that_passes_its_group_on(self, tmp_path: Path) -> None:
        group = next(
            (each for each in os.getgroups() if each != os.getegid()), 33 if os.geteuid() == 0 else None
        )
        if group is None:
            pytest.skip("this user has one group")
        os.chown(tmp_path, -1, group)
        tmp_path.chmod(0o2700)
        path = tmp_path / "a.sock"
        with opened(f"unix:{path}"):
            assert path.stat().st_gid == group

    @needs_root
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (SocketAccess(0o666), SocketAccess(0o600, (NOBODY, 33))),
            (SocketAccess(0o600, (NOBODY, NOBODY)), SocketAccess(0o660, (33, 33))),
            (SocketAccess(0o660, (33, 33)), SocketAccess(0o606)),
            (SocketAccess(0o660, (33, 33)), SocketAccess(0o660, (33, 33))),
        ],
    )
    def test_never_have_rights_that_were_not_asked_for(
        self, tmp_path: Path, before: SocketAccess, after: SocketAccess
    ) -> None:
        path, seen = tmp_path / "a.sock", []

        def current() -> SocketAccess:
            status = path.stat()
            return SocketAccess(stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))

        def watch(*_: object) -> None:
            if path.exists():
                seen.append(current())

        umask = os.umask(0)
        try:
            with moments.before("os.chmod", watch), moments.before("os.chown", watch):
                sockets = open_listener(parse(f"unix:{path}"), access=before)
                opened_with = current()
                assert opened_with == before._replace(owner=before.owner or (0, os.getegid()))
                assert all(rights(each) <= rights(opened_with) | {("user", 0)} for each in seen), seen
                seen.clear()
                change_access(parse(f"unix:{path}"), sockets, after)
        finally:
            os.umask(umask)
        now = current()
        assert now == after._replace(owner=after.owner or (0, os.getegid()))
        assert all(rights(each) <= rights(opened_with) | rights(now) for each in seen), seen
        assert bool(seen) == (now != opened_with)
        close_listener(sockets)

    @needs_root
    def test_in_a_directory_of_another_user_are_changed_alone(self, tmp_path: Path) -> None:
        os.chown(tmp_path, NOBODY, NOBODY)
        address, moved = parse(f"unix:{tmp_path}/a.sock"), tmp_path / "moved"
        sockets = open_listener(address, access=SocketAccess(0o666, (NOBODY, NOBODY)))
        change_access(address, sockets, SocketAccess(0o660, (NOBODY, 33)))
        assert (tmp_path / "a.sock").stat().st_gid == 33
        with opened(f"unix:{tmp_path}/precious"):
            (tmp_path / "a.sock").rename(moved)
            (tmp_path / "precious").rename(tmp_path / "a.sock")
            with (
                no_descriptor_left(),
                pytest.raises(ListenError, match="is not the socket of this listener any more"),
            ):
                change_access(address, sockets, SocketAccess(0o666, (NOBODY, NOBODY)))
            status = (tmp_path / "a.sock").stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
        close_listener(sockets)

    @needs_root
    def test_that_have_their_mode_and_owner_need_no_answer_of_the_kernel(self, tmp_path: Path) -> None:
        os.chown(tmp_path, NOBODY, NOBODY)
        address, access = parse(f"unix:{tmp_path}/a.sock"), SocketAccess(0o666, (NOBODY, NOBODY))
        sockets = open_listener(address, access=access)
        run_without(NO_NETLINK, lambda: change_access(address, sockets, access))
        with pytest.raises(ListenError, match="is not the socket of this listener any more"):
            run_without(NO_NETLINK, lambda: change_access(address, sockets, access._replace(mode=0o660)))
        close_listener(sockets)

    @needs_root
    @pytest.mark.parametrize(("uid", "fix"), [(0, "CAP_CHOWN"), (NOBODY, "start poolctl as root")])
    def test_that_cannot_be_given_away_are_an_error_with_the_fix(
        self, short_path: Path, uid: int, fix: str
    ) -> None:
        os.chown(short_path, uid, -1)
        address, access = parse(f"unix:{short_path}/a.sock"), SocketAccess(0o666, (0, 4242))
        message = "cannot be given to root:4242: Operation not permitted"
        os.seteuid(uid)
        try:
            with no_descriptor_left(), pytest.raises(ListenError, match=message) as caught:
                run_without({CHOWN: errno.EPERM}, lambda: open_listener(address, access=access))
            assert fix in caught.value.hint
        finally:
            os.seteuid(0)

    @pytest.mark.parametrize(
        ("number", "message", "hint"),
        [
            *((number, "no socket can be made in", "writable") for number in (errno.EPERM, errno.EROFS)),
            (errno.ENOSPC, "the Unix socket .*/a.sock cannot be opened", ""),
        ],
    )
    def test_whose_directory_cannot_be_used_are_explained(
        self, tmp_path: Path, number: int, message: str, hint: str
    ) -> None:
        address = parse(f"unix:{tmp_path}/a.sock")
        with pytest.raises(ListenError, match=f"{message}.*: {os.strerror(number)}") as caught:
            run_without({BIND: number}, lambda: open_listener(address))
        assert (hint in caught.value.hint, caught.value.bind) == (True, address.key)

    def test_that_are_stale_and_cannot_be_removed_are_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        with opened(f"unix:{path}"):
            pass
        with pytest.raises(ListenError, match=f"the stale socket {path} cannot be removed"):
            run_without({UNLINKAT: errno.EPERM}, lambda: open_listener(parse(f"unix:{path}")))
        with (
            moments.before("os.remove", lambda *_: path.rename(tmp_path / "gone.sock")),
            opened(f"unix:{path}"),
        ):
            assert is_live(str(path))

    @pytest.mark.parametrize("found", ["nothing", "a link", "a file", "a socket of an older listener"])
    def test_that_are_not_the_file_just_made_are_refused(self, tmp_path: Path, found: str) -> None:
        here, away = tmp_path / "here", tmp_path / "away"
        here.mkdir()
        here.chmod(0o777)  # others can move files here

        def exchange(sock: socket.socket, name: str) -> None:
            if name != f"{here}/a.sock" or away.exists():
                return
            here.rename(away)
            here.mkdir()
            if found == "a link":
                (away / "a.sock").symlink_to("../here/a.sock")
            elif found == "a file":
                (away / "a.sock").touch(0o200)
            elif found != "nothing":
                close_listener(open_listener(parse(f"unix:{away}/a.sock")))

        with (
            moments.before("socket.bind", exchange),
            no_descriptor_left(),
            pytest.raises(ListenError, match="its directory was replaced meanwhile"),
        ):
            open_listener(parse(f"unix:{here}/a.sock"))

    def test_may_have_a_path_of_107_bytes(self, short_path: Path) -> None:
        path = f"{short_path}/".ljust(107, "x")
        with opened(f"unix:{path}"):
            assert is_live(path)

    def test_do_not_replace_a_link_to_a_live_socket(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("a.sock")
        with (
            opened(f"unix:{tmp_path}/a.sock"),
            pytest.raises(ListenError, match="exists and is not a socket"),
        ):
            open_listener(parse(f"unix:{tmp_path}/link"))
        assert (tmp_path / "link").is_symlink()

    def test_are_not_removed_without_an_identity_or_a_directory(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        with opened(f"unix:{path}"), no_descriptor_left():
            mine = socket_file_identity(f"unix:{path}")
            remove_socket_file(str(path), None)
            remove_socket_file(str(tmp_path / "none" / "a.sock"), mine)
            remove_socket_file(str(tmp_path / "b.sock"), mine)
            os.link(path, tmp_path / "b.sock")
            remove_socket_file(str(tmp_path / "b.sock"), mine)
            assert list(tmp_path.iterdir()) == [path]

    def test_are_removed_at_the_end_when_the_file_is_still_theirs(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        sockets = open_listener(parse(f"unix:{path}"))
        close_listener(sockets, socket_file_identity(f"unix:{path}"))
        assert not path.exists()

    def test_of_another_process_are_left_alone_at_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        sockets = open_listener(parse(f"unix:{path}"))
        mine = socket_file_identity(f"unix:{path}")
        path.rename(tmp_path / "elsewhere.sock")
        with opened(f"unix:{path}"):
            close_listener(sockets, mine)
            assert path.exists()

    def test_that_are_stale_are_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        with opened(f"unix:{path}"):
            pass
        assert path.exists()
        with opened(f"unix:{path}"):
            assert is_live(str(path))

    def test_that_are_live_are_an_error_that_names_the_process(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        with opened(f"unix:{path}"):
            with pytest.raises(ListenError) as caught:
                open_listener(parse(f"unix:{path}"))
            (error,) = name_holders([caught.value], 60)
        assert error.message.startswith(f"the Unix socket {path} is in use by")
        assert f"(pid {os.getpid()})" in error.message
        assert f"(pid {os.getpid()})" in error.message

    def test_with_a_full_backlog_are_live(self, tmp_path: Path) -> None:
        path = str(tmp_path / "a.sock")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(path)
            listener.listen(0)
            client.connect(path)
            assert is_live(path)

    def test_with_a_path_that_is_too_long_are_refused_before_the_kernel_does(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 108)
        with pytest.raises(ListenError, match="107 is the most") as caught:
            open_listener(parse(f"unix:{path}"))
        assert "shorter" in caught.value.hint

    def test_in_a_missing_directory_name_the_command_that_makes_it(self, tmp_path: Path) -> None:
        with pytest.raises(ListenError, match="does not exist") as caught:
            open_listener(parse(f"unix:{tmp_path}/none/a.sock"))
        assert caught.value.hint == f"make it: mkdir -p {tmp_path}/none"

    def test_never_replace_a_file_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sock"
        path.write_text("precious")
        with pytest.raises(ListenError, match="is not a socket"):
            open_listener(parse(f"unix:{path}"))
        assert path.read_text() == "precious"

    def test_where_no_socket_can_be_made_say_so(self) -> None:
        with pytest.raises(ListenError, match=r"/proc/self") as caught:
            open_listener(parse("unix:/proc/self/a.sock"))
        assert caught.value.bind == "unix:/proc/self/a.sock"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")
    @pytest.mark.parametrize("own", [False, True], ids=["to another's directory", "to its owner's directory"])
    def test_are_made_behind_a_link_of_another_user_only_in_that_users_directory(
        self, tmp_path: Path, own: bool
    ) -> None:
        target = tmp_path / "target"
        target.mkdir()
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "run").symlink_to(target)
        for each in (theirs, theirs / "run", *([target] if own else [])):
            os.lchown(each, 65534, 65534)
        address = f"unix:{theirs}/run/a.sock"
        if own:
            with opened(address):
                assert (target / "a.sock").is_socket()
            return
        with pytest.raises(ListenError, match="is a link that another user can make"):
            open_listener(parse(address))
        assert list(target.iterdir()) == []

    def test_have_no_identity_when_there_is_no_socket(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert socket_file_identity(f"unix:{tmp_path}/none") is None
        assert socket_file_identity(f"unix:{tmp_path}/file") is None

    def test_are_not_removed_by_a_link_to_them(self, tmp_path: Path) -> None:
        path, link = tmp_path / "a.sock", tmp_path / "link"
        link.symlink_to(path)
        with opened(f"unix:{path}"):
            identity = socket_file_identity(f"unix:{path}")
            remove_socket_file(str(link), identity)
            assert link.is_symlink()
            remove_socket_file(str(path), identity)
            assert not path.exists()

    def test_without_a_path_are_described_as_unnamed(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"\0poolctl-test-{os.getpid()}\0x")
            assert describe(sock) == f"unix:@poolctl-test-{os.getpid()}\0x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_permission_error_of_an_ordinary_user_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    program = f"""
import encodings.idna, os, socket, sys
from poolctl.address import parse
from poolctl.listeners.listen_errors import name_holders
from poolctl.listeners.open_listener import ListenError, open_listener
other = socket.create_server(("127.0.0.1", 0))
port = other.getsockname()[1]
os.setgid(65534); os.setuid(65534)
for text in ("127.0.0.1:" + str(port), "unix:{tmp_path}/a.sock"):
    try:
        open_listener(parse(text))
    except ListenError as error:
        (error,) = name_holders([error], 60)
        print(error.message.replace(str(port), "PORT"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        # What measures coverage cannot write its file as somebody else.
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("port PORT is in use by ")
    assert second == f"no socket can be made in {tmp_path}: Permission denied"


@pytest.mark.parametrize("what", ["listener", "outgoing connection", "unix"])
def test_command_that_a_hint_names_shows_the_holder_of_the_address(what: str, tmp_path: Path) -> None:
    program("ss")
    with ExitStack() as stack:
        place: Place
        if what == "unix":
            place = f"{tmp_path}/a.sock"
            stack.enter_context(opened(f"unix:{place}"))
        else:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            place = (listener if what == "listener" else client).getsockname()
        hint = address_in_use_error(parse("127.0.0.1:1"), place).hint
        command = re.search(r"ss -\w+ '.*?'", hint)
        assert command is not None, hint
        done = subprocess.run(command[0], shell=True, capture_output=True, text=True, check=True)
    assert f"pid={os.getpid()}," in done.stdout


PROGRAM = """
import os, socket, sys
from poolctl.address import parse
from poolctl.listeners.open_listener import inherited_descriptors
from poolctl.listeners.open_listener import describe, open_listener
from tests.descriptors import no_descriptor_left
os.environ["LISTEN_PID"] = str(os.getpid())
inherited = inherited_descriptors(os.environ)
assert not os.get_inheritable(3)
for text in sys.argv[1:]:
    print(" ".join(describe(sock) for sock in open_listener(parse(text), inherited=inherited)))
"""


def test_inherited_descriptors_are_found_by_number_and_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        expected = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (first, second)]
        script = 'exec 3<&$1 4<&$2; shift 2; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", str(first.fileno()), str(second.fileno()),
             sys.executable, "-c", PROGRAM, "fd:3", "fd:4", "fd:web"],
            pass_fds=[first.fileno(), second.fileno()],
            capture_output=True, text=True, timeout=60, check=True,
            env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:web"},
        )  # fmt: skip
    assert done.stdout.splitlines() == [*expected, " ".join(expected)]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "one", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_descriptors_for_another_process_are_not_taken(env: dict[str, str]) -> None:
    assert inherited_descriptors(env) == {}


def test_descriptors_that_are_not_open_are_passed_over() -> None:
    env = {"LISTEN_FDS": "65000", "LISTEN_PID": str(os.getpid())}
    assert inherited_descriptors(env).get("64000") is None


def test_returned_listeners_are_used_where_they_listen_at_the_address(tmp_path: Path) -> None:
    file = f"unix:{tmp_path}/a.sock"
    for text in (f"127.0.0.1:{claim_port()}", f":{claim_port()}", f"[::]:{claim_port()}", file):
        before = open_listener(parse(text))
        found = open_listener(parse(text), returned=before)
        assert [sock.fileno() for sock in found] == [sock.fileno() for sock in before]
        close_listener(found)


def test_returned_listeners_that_are_of_no_use_are_closed_and_replaced(tmp_path: Path) -> None:
    port, unheard, path = claim_port(), claim_port(), tmp_path / "a.sock"
    other, dual = open_listener(parse(f"127.0.0.1:{claim_port()}")), open_listener(parse(f"[::]:{port}"))
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", unheard))
    moved = open_listener(parse(f"unix:{path}"))
    path.rename(tmp_path / "b.sock")
    for returned, text in (
        (dual, f":{port}"),
        (other, f"127.0.0.1:{port}"),
        ([bound], f"127.0.0.1:{unheard}"),
        (moved, f"unix:{path}"),
    ):
        copies = [sock.dup() for sock in returned]  # as the service manager has them
        found = open_listener(parse(text), returned=returned)
        assert all(listens(sock) for sock in found)
        assert not any(map(listens, copies))
        assert {sock.fileno() for sock in returned} == {-1}
        close_listener([*found, *copies])


def test_returned_listeners_are_closed_if_the_address_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.sock").touch()
    returned = open_listener(parse(f"unix:{tmp_path}/b.sock"))
    with pytest.raises(ListenError):
        open_listener(parse(f"unix:{tmp_path}/a.sock"), returned=returned)
    assert returned[0].fileno() == -1


def test_inherited_listener_shares_its_accept_queue() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        sockets = open_listener(parse("fd:web"), inherited={"web": [passed.fileno()]})
        with socket.create_connection(passed.getsockname()):
            sockets[0].setblocking(True)
            sockets[0].accept()[0].close()
        close_listener(sockets)


def test_inherited_socket_that_is_only_bound_starts_to_listen() -> None:
    with socket.socket() as passed:
        passed.bind(("127.0.0.1", 0))
        sockets = duplicate_inherited_listeners(parse("fd:3"), {"3": [passed.fileno()]})
        socket.create_connection(passed.getsockname(), timeout=60).close()
        close_listener(sockets)


def test_unknown_inherited_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ListenError, match=r"no socket fd:web was inherited \(inherited: fd:3, fd:api\)"
    ) as caught:
        open_listener(parse("fd:web"), inherited={"3": [3], "api": [3]})
    assert "FileDescriptorName=" in caught.value.hint
    with pytest.raises(ListenError, match="inherited: none"):
        open_listener(parse("fd:web"))


def test_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket(type=socket.SOCK_DGRAM) as datagrams, open(tmp_path / "f", "w") as file:
        for fd in (one.fileno(), datagrams.fileno()):
            with pytest.raises(ListenError, match="that cannot listen"):
                open_listener(parse("fd:x"), inherited={"x": [fd]})
        with pytest.raises(ListenError, match="is not a socket"):
            open_listener(parse("fd:x"), inherited={"x": [file.fileno()]})


def test_one_bad_descriptor_of_a_name_gives_back_the_others(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as good,
        open(tmp_path / "f", "w") as file,
        no_descriptor_left(),
        pytest.raises(ListenError),
    ):
        open_listener(parse("fd:x"), inherited={"x": [good.fileno(), file.fileno()]})


@pytest.mark.parametrize(
    ("family", "host", "called"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_accepted_connections_of_a_listener_are_found(family: int, host: str, called: str) -> None:
    with socket.socket(family) as listener, socket.create_server(("127.0.0.1", 0)) as another:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with (
            socket.create_connection((called, port)),
            socket.create_connection(another.getsockname()),
            listener.accept()[0] as accepted,
            another.accept()[0],
        ):
            twin = os.dup(accepted.fileno())
            try:
                found = listener_and_connection_descriptors([listener])
                assert set(found) == {listener.fileno(), accepted.fileno(), twin}
            finally:
                os.close(twin)


def test_unix_sockets_are_identified_by_their_paths(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "a.sock"))
        listener.listen()
        client.connect(str(tmp_path / "a.sock"))
        with listener.accept()[0] as accepted:
            expected = {listener.fileno(), accepted.fileno()}
            assert set(listener_and_connection_descriptors([listener])) == expected


def test_no_connections_are_found_without_listeners() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert listener_and_connection_descriptors([]) == []
