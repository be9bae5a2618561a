"""Contract §1: one canonical address for every spelling, seen from the command line."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.real_pool import RealPool


def write(pool: RealPool, *binds: str, extra: str = "") -> None:
    servers = "\n".join(
        f'[[server]]\nname = "s{number}"\nbind = "{bind}"\napp = "hello:app"\n{extra}'
        for number, bind in enumerate(binds)
    )
    pool.write_hello()
    pool.write("pool.toml", servers)


# Spellings, each at a port of its own, and their canonical forms.
SPELLINGS = [
    ("127.0.0.1:{}", "127.0.0.1:{}"),
    (":{}", "0.0.0.0:{}"),
    ("*:{}", "0.0.0.0:{}"),
    ("0.0.0.0:{}", "0.0.0.0:{}"),
    ("localhost:{}", "localhost:{}"),
    ("LocalHost:{}", "localhost:{}"),
    ("[::1]:{}", "[::1]:{}"),
    ("[0:0:0:0:0:0:0:1]:{}", "[::1]:{}"),
    ("[::]:{}", "[::]:{}"),
    ("http://127.0.0.1:{}", "127.0.0.1:{}"),
    ("http://127.0.0.1:{}/", "127.0.0.1:{}"),
    ("HTTPS://127.0.0.1:{}", "127.0.0.1:{}"),
    ("127.0.0.1:http", "127.0.0.1:80"),
    ("LOCALHOST:HTTPS", "localhost:443"),
    ("Example.COM:{}", "example.com:{}"),
    ("unix:/run/../run/./a.sock", "unix:/run/a.sock"),
    ("unix:./a.sock", "unix:DIRECTORY/a.sock"),
    ("[::FFFF:7f00:1]:{}", "127.0.0.1:{}"),
    ("[::ffff:127.0.0.1]:{}", "127.0.0.1:{}"),
    ("127.0.0.1:AUTO", "127.0.0.1:auto"),
    ("[::1]:0", "[::1]:auto"),
    ("fd:3", "fd:3"),
    ("fd:web", "fd:web"),
]


def test_every_spelling_has_one_key(real_pool: RealPool) -> None:
    write(real_pool, *(written.format(8000 + number) for number, (written, _) in enumerate(SPELLINGS)))
    items = real_pool.items()
    for number, (written, canonical) in enumerate(SPELLINGS):
        expected = canonical.replace("DIRECTORY", str(real_pool.directory)).format(8000 + number)
        assert items[f"s{number}"]["bind"] == expected, written
    exposed = [items[name]["expose"] for name in ("s0", "s1")]
    assert exposed == ["http://127.0.0.1:8000", "http://localhost:8001"]


WRONG = [
    "", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:no-such-service", "[::1:8080",
    "::1:8080", "256.0.0.1:8080", "unix:", "fd:", "127.0.0.1:8080:9090", "a b:80", "ftp//x:1", "unix:/tmp/" + "x" * 120,
]  # fmt: skip
OVERLAPPING = [
    ("0.0.0.0:{}", "127.0.0.1:{}"), ("127.0.0.1:{}", ":{}"), ("[::]:{}", "0.0.0.0:{}"), ("[::]:{}", "[::1]:{}"),
    (":{}", "[::1]:{}"), ("localhost:{}", "127.0.0.1:{}"), ("[::1]:{}", "[0::1]:{}"),
    ("127.0.0.1:http", "http://127.0.0.1:80"),
]  # fmt: skip
APART = [("127.0.0.1:{}", "127.0.0.2:{}"), ("127.0.0.1:{}", "127.0.0.1:1{}")]


def test_a_wrong_address_is_one_problem_with_its_place(real_pool: RealPool) -> None:
    write(real_pool, *WRONG)
    done = real_pool.run("validate", "-o", "json")
    assert done.code == 5, str(done)
    assert [(error["name"], error["line"]) for error in done.json["errors"]] == [
        (f"s{number}", 5 * number + 3) for number in range(len(WRONG))
    ]
    assert "Traceback" not in done.stderr


def test_overlapping_addresses_are_an_error_that_names_both_places(real_pool: RealPool) -> None:
    pairs = OVERLAPPING + APART
    write(real_pool, *(each.format(8000 + number) for number, pair in enumerate(pairs) for each in pair))
    done = real_pool.run("validate")
    assert done.code == 5, str(done)
    told = [line for line in done.stdout.splitlines() if line.startswith("pool.toml:")]
    assert len(told) == len(OVERLAPPING)
    for number, line in enumerate(told):
        assert line.startswith(f"pool.toml:{10 * number + 8}:"), line
        assert f"'s{2 * number}'" in line
        assert f"pool.toml:{10 * number + 3}" in line


def test_selectors_take_any_spelling_of_an_address(real_pool: RealPool) -> None:
    write(real_pool, ":8080", "[::1]:9090")
    for spelling in ("*:8080", "0.0.0.0:8080", "http://0.0.0.0:8080"):
        assert [*real_pool.items(spelling)] == ["s0"], spelling
    assert [*real_pool.items("[0:0:0:0:0:0:0:1]:9090")] == ["s1"]
    assert real_pool.ok("filter", "bind", "[0::1]:9090", "-o", "name").stdout.split() == ["s1"]


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
