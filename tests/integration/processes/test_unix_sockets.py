"""Who can connect to the Unix socket of a server: its mode and its owner, over every change of the pool."""

from __future__ import annotations

import contextlib
import grp
import http.client
import os
import pwd
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.real_pool import HELLO_APP, RealPool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")

STRANGER = 54321  # a user without a name
TAKES_THE_SOCKET = "import socket\nserver = socket.socket(fileno=3)\nwhile True: server.accept()[0].close()\n"


@pytest.fixture
def pool(real_pool: RealPool) -> Iterator[RealPool]:
    """A pool in a directory that every user can enter, started under a umask that leaves nothing to others."""
    real_pool.open_to_all()
    real_pool.write("hello.py", HELLO_APP)
    before = os.umask(0o077)
    try:
        yield real_pool
    finally:
        os.umask(before)


def write(pool: RealPool, **keys: object) -> Path:
    path = pool.directory / "web.sock"
    serves = {} if "command" in keys else {"app": "hello:app"}
    pool.write("pool.toml", server("web", bind=f"unix:{path}", **serves, **keys)).chmod(0o644)
    (pool.directory / "hello.py").chmod(0o644)
    return path


def access(path: Path) -> tuple[str, str, str]:
    status = path.stat()
    owner = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
    return f"{stat.S_IMODE(status.st_mode):04o}", *owner


def connects(pool: RealPool, path: Path, uid: int) -> bool:
    """Whether a process of this user, without further groups, can connect to the socket."""
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    done = subprocess.run(
        [pool.python, "-S", "-c", code, str(path)], user=uid, group=uid, extra_groups=[], cwd="/",
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 or "PermissionError" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.capability
def test_every_user_can_connect_to_a_socket_that_belongs_to_the_user_of_its_server(pool: RealPool) -> None:
    path = write(pool, user="nobody", umask="0077")
    pool.ok("start")
    assert access(path) == ("0666", "nobody", "nogroup")
    assert connects(pool, path, STRANGER)


def test_socket_is_narrowed_to_a_mode_and_an_owner(pool: RealPool) -> None:
    path = write(pool, user="nobody", socket_mode="0660", socket_owner="www-data:daemon")
    pool.ok("start")
    assert access(path) == ("0660", "www-data", "daemon")
    daemon = grp.getgrnam("daemon").gr_gid
    assert (connects(pool, path, STRANGER), connects(pool, path, daemon)) == (False, True)
    assert get(f"unix:{path}").status == 200


def test_socket_that_a_program_takes_is_narrowed_too(pool: RealPool) -> None:
    pool.write("takes.py", TAKES_THE_SOCKET).chmod(0o644)
    command = [pool.python, "takes.py", "{fd}"]
    path = write(pool, command=command, socket_mode="0600", socket_owner="nobody")
    pool.ok("start")
    assert access(path) == ("0600", "nobody", "nogroup")
    assert not connects(pool, path, STRANGER)


def test_reload_changes_mode_and_owner_and_keeps_connections(pool: RealPool) -> None:
    path = write(pool)
    pool.ok("start")
    pids, inode = pool.items()["web"]["pids"], path.stat().st_ino
    kept = http.client.HTTPConnection("localhost")
    kept.sock = socket.socket(socket.AF_UNIX)
    kept.sock.connect(str(path))
    kept.request("GET", "/")
    kept.getresponse().read()

    write(pool, socket_mode="0600", socket_owner="nobody:www-data")
    assert "socket_mode, socket_owner" in pool.ok("reload").stdout
    assert (access(path), path.stat().st_ino) == (("0600", "nobody", "www-data"), inode)
    assert pool.items()["web"]["pids"] == pids
    kept.request("GET", "/")
    assert kept.getresponse().status == 200
    kept.close()

    write(pool, user="daemon")
    pool.ok("reload")
    assert (access(path), path.stat().st_ino) == (("0666", "daemon", "daemon"), inode)


def test_successor_keeps_the_socket_and_can_change_it(pool: RealPool) -> None:
    path = write(pool, socket_mode="0660", socket_owner="www-data")
    pool.ok("start")
    inode = path.stat().st_ino
    path.chmod(0o666)  # as if the supervisor had died before it narrowed the socket
    pool.replace_supervisor()
    pool.ok("status")
    assert (access(path), path.stat().st_ino) == (("0660", "www-data", "www-data"), inode)
    write(pool, socket_mode="0600", socket_owner="www-data")
    pool.ok("reload")
    assert (access(path), path.stat().st_ino) == (("0600", "www-data", "www-data"), inode)


def test_socket_file_of_a_killed_pool_is_replaced_with_the_rights_of_the_next(pool: RealPool) -> None:
    path = write(pool, socket_owner="nobody")
    pool.ok("start")
    for pid in pool.processes():
        with contextlib.suppress(ProcessLookupError):  # it ends with the others
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not pool.processes())
    assert access(path) == ("0666", "nobody", "nogroup")
    write(pool, socket_mode="0600")
    pool.ok("start")
    assert access(path) == ("0600", "root", "root")


def test_owner_that_is_lost_by_a_failed_restart_comes_back(pool: RealPool) -> None:
    path = write(pool, user="nobody")
    pool.ok("start")
    (pool.directory / "hello.py").write_text("raise SystemExit('broken')")
    write(pool, user="daemon")
    assert pool.run("reload").code == 1
    assert access(path) == ("0666", "nobody", "nogroup")


def test_reload_reports_a_socket_file_that_is_gone(pool: RealPool) -> None:
    path = write(pool)
    pool.ok("start")
    path.unlink()
    write(pool, socket_mode="0600")
    done = pool.run("reload")
    assert done.code == 1
    assert f"web: the mode of {path} cannot be set: No such file or directory" in done.stderr
