"""Contract §1: one canonical address for every spelling, seen from the command line."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get, refused
from tests.real_pool import RealPool


def write(pool: RealPool, *binds: str, extra: str = "") -> None:
    servers = "\n".join(
        f'[[server]]\nname = "s{number}"\nbind = "{bind}"\napp = "hello:app"\n{extra}'
        for number, bind in enumerate(binds)
    )
    pool.write_hello()
    pool.write("pool.toml", servers)


def key_of(pool: RealPool, bind: str) -> str:
    write(pool, bind)
    return str(pool.items()["s0"]["bind"])


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        (":8080", "0.0.0.0:8080"),
        ("*:8080", "0.0.0.0:8080"),
        ("0.0.0.0:8080", "0.0.0.0:8080"),
        ("localhost:8080", "localhost:8080"),
        ("LocalHost:8080", "localhost:8080"),
        ("[::1]:8080", "[::1]:8080"),
        ("[0:0:0:0:0:0:0:1]:8080", "[::1]:8080"),
        ("[::]:8080", "[::]:8080"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
        ("HTTPS://127.0.0.1:8443", "127.0.0.1:8443"),
        ("127.0.0.1:http", "127.0.0.1:80"),
        ("127.0.0.1:https", "127.0.0.1:443"),
        ("LOCALHOST:HTTP", "localhost:80"),
        ("Example.COM:80", "example.com:80"),
        ("unix:/run/../run/./a.sock", "unix:/run/a.sock"),
        ("[::FFFF:7f00:1]:80", "127.0.0.1:80"),
        ("127.0.0.1:AUTO", "127.0.0.1:auto"),
        ("[::1]:0", "[::1]:auto"),
        ("[::ffff:127.0.0.1]:8080", "127.0.0.1:8080"),
        ("fd:3", "fd:3"),
        ("fd:web", "fd:web"),
    ],
)
def test_every_spelling_has_one_key(real_pool: RealPool, written: str, canonical: str) -> None:
    assert key_of(real_pool, written) == canonical


def test_a_relative_unix_path_is_relative_to_its_file(real_pool: RealPool) -> None:
    assert key_of(real_pool, "unix:./a.sock") == f"unix:{real_pool.directory}/a.sock"


@pytest.mark.parametrize(
    "written",
    ["", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:no-such-service",
     "[::1:8080", "::1:8080", "256.0.0.1:8080", "unix:", "fd:", "127.0.0.1:8080:9090", "a b:80", "ftp//x:1"],
)  # fmt: skip
def test_a_wrong_address_is_one_problem_with_its_place(real_pool: RealPool, written: str) -> None:
    write(real_pool, written)
    done = real_pool.run("validate")
    assert done.code == 5, str(done)
    assert "pool.toml:3:" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", ":8080"),
        ("[::]:8080", "0.0.0.0:8080"),
        ("[::]:8080", "[::1]:8080"),
        (":8080", "[::1]:8080"),
        ("localhost:8080", "127.0.0.1:8080"),
        ("[::1]:8080", "[0::1]:8080"),
        ("127.0.0.1:http", "http://127.0.0.1:80"),
    ],
)
def test_overlapping_addresses_are_an_error_that_names_both_places(
    real_pool: RealPool, one: str, other: str
) -> None:
    write(real_pool, one, other)
    done = real_pool.run("validate")
    assert done.code == 5, str(done)
    text = done.stdout + done.stderr
    assert "pool.toml:3:" in text
    assert "pool.toml:8:" in text
    assert "'s0'" in text


@pytest.mark.parametrize(
    ("one", "other"), [("127.0.0.1:8080", "127.0.0.2:8080"), ("127.0.0.1:1", "127.0.0.1:2")]
)
def test_different_addresses_do_not_overlap(real_pool: RealPool, one: str, other: str) -> None:
    write(real_pool, one, other)
    real_pool.ok("validate")


def test_two_servers_of_one_name_are_an_error_that_names_both_places(real_pool: RealPool) -> None:
    real_pool.write_hello()
    server = '[[server]]\nname = "web"\nbind = "127.0.0.1:{}"\napp = "hello:app"\n'
    real_pool.write("pool.toml", server.format(8080) + server.format(8081))
    done = real_pool.run("validate")
    assert done.code == 5
    text = done.stdout + done.stderr
    assert "pool.toml:2" in text
    assert "pool.toml:6" in text


def test_selectors_take_any_spelling_of_an_address(real_pool: RealPool) -> None:
    write(real_pool, ":8080", "[::1]:9090")
    for spelling in ("*:8080", "0.0.0.0:8080", "http://0.0.0.0:8080"):
        assert [*real_pool.items(spelling)] == ["s0"], spelling
    assert [*real_pool.items("[0:0:0:0:0:0:0:1]:9090")] == ["s1"]
    assert real_pool.ok("filter", "bind", "[0::1]:9090", "-o", "name").stdout.split() == ["s1"]


@pytest.mark.slow
def test_server_listens_at_every_address_that_its_host_means(real_pool: RealPool, free_port: Any) -> None:
    both, named, six = (free_port() for _ in range(3))
    write(real_pool, f":{both}", f"localhost:{named}", f"[0:0::1]:{six}")
    real_pool.ok("start")
    hosts = {entry[4][0] for entry in socket.getaddrinfo("localhost", named, type=socket.SOCK_STREAM)}
    places = [f"[{host}]:{named}" if ":" in str(host) else f"{host}:{named}" for host in hosts]
    places += [f"127.0.0.1:{both}", f"[::1]:{both}", f"[::1]:{six}"]
    for _ in range(2):
        assert {get(place).status for place in places} == {200}
        assert refused(six)
        real_pool.ok("restart")


def test_a_unix_socket_serves_and_is_removed_by_stop(real_pool: RealPool) -> None:
    path = real_pool.runtime / "a.sock"  # short enough, unlike a test's own directory
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # left behind by a program that has ended
    write(real_pool, f"unix:{path}")
    for command in ("start", "restart"):
        real_pool.ok(command)
        assert get(f"unix:{path}").status == 200
    real_pool.ok("stop", "s0")
    assert not path.exists()
    real_pool.ok("start", "s0")
    assert get(f"unix:{path}").status == 200


@pytest.mark.parametrize(("extra", "mode"), [("", "0o666"), ('socket_mode = "0620"', "0o620")])
def test_mode_of_a_unix_socket_does_not_depend_on_the_umask(
    real_pool: RealPool, extra: str, mode: str
) -> None:
    path = real_pool.runtime / "a.sock"
    write(real_pool, f"unix:{path}", extra=extra)
    before = os.umask(0o077)
    try:
        real_pool.ok("start")
    finally:
        os.umask(before)
    assert oct(stat.S_IMODE(path.stat().st_mode)) == mode


@pytest.mark.slow
def test_unix_path_that_is_too_long_is_a_problem(real_pool: RealPool) -> None:
    write(real_pool, "unix:/tmp/" + "x" * 120)
    done = real_pool.run("start")
    assert done.code in (1, 5), str(done)
    assert "long" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_automatic_port_is_kept_over_stop_and_restart(
    real_pool: RealPool, free_port: Any, http_get: Any
) -> None:
    count = 4
    first = free_port(count)
    write(real_pool, "127.0.0.1:auto", "127.0.0.1:0")
    text = Path(real_pool.directory, "pool.toml").read_text()
    real_pool.write("pool.toml", f'[pool]\nport_range = "{first}-{first + count - 1}"\n{text}')
    real_pool.ok("start")
    before = {name: item["bind"] for name, item in real_pool.items().items()}
    assert len(set(before.values())) == 2
    for bind in before.values():
        assert first <= int(bind.rpartition(":")[2]) < first + count
        assert http_get(bind).status == 200
    real_pool.ok("restart")
    assert {name: item["bind"] for name, item in real_pool.items().items()} == before
    real_pool.ok("stop")
    assert {name: item["bind"] for name, item in real_pool.items().items()} == before
    real_pool.ok("start")
    assert {name: item["bind"] for name, item in real_pool.items().items()} == before


@pytest.mark.slow
def test_a_chosen_port_is_free_again_when_its_server_has_left_the_file(
    real_pool: RealPool, free_port: Any
) -> None:
    port = free_port()
    head = f'[pool]\nport_range = "{port}-{port}"\n'
    write(real_pool, "127.0.0.1:auto")
    path = Path(real_pool.directory, "pool.toml")
    text = head + path.read_text()
    path.write_text(text)
    real_pool.ok("start")
    real_pool.ok("stop")
    other = text.replace('"s0"', '"other"')
    path.write_text(text + other.removeprefix(head))
    done = real_pool.run("start")
    assert done.code == 5, "kept for the one that is stopped"
    assert "port_range" in done.stderr
    path.write_text(other)
    real_pool.ok("start")
    assert real_pool.ok("list", f"127.0.0.1:{port}", "-o", "name").stdout == "other\n"
    assert real_pool.ok("walk", "-q", "--", "echo", "{bind} {port}").stdout == f"127.0.0.1:{port} {port}\n"


@pytest.mark.slow
def test_fd_without_an_inherited_socket_fails_with_the_fix(real_pool: RealPool) -> None:
    write(real_pool, "fd:web")
    done = real_pool.run("start")
    assert done.code == 1, str(done)
    assert "inherited" in done.stderr
    assert "hint" in done.stderr


def test_expose_is_derived_from_bind(real_pool: RealPool) -> None:
    write(real_pool, "127.0.0.1:8081", ":8082")
    items = real_pool.items()
    assert items["s0"]["expose"] == "http://127.0.0.1:8081"
    assert items["s1"]["expose"] == "http://localhost:8082"


def test_status_warns_of_a_unix_socket_whose_file_was_removed(real_pool: RealPool, http_get: Any) -> None:
    path = real_pool.runtime / "a.sock"
    write(real_pool, f"unix:{path}", f"unix:{path}2")
    real_pool.ok("start")
    assert "warning" not in real_pool.ok("status").stderr
    path.unlink()
    fix = "poolctl stop s0 && poolctl start s0"
    warned = f"warning: s0: {path} has been removed, so that clients cannot connect; {fix} opens it again\n"
    assert real_pool.ok("status").stderr == warned
    for command in fix.split(" && "):
        real_pool.ok(*command.split()[1:])
    assert http_get(f"unix:{path}").status == 200
    assert real_pool.ok("status").stderr == ""
