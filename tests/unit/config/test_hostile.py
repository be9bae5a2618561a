"""Hostile files end in one clear error, soon."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config.files.read_file import LARGEST_BYTES
from poolctl.errors import PoolValidateError
from tests.config_files import SERVER, told

MANY = 500_000
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join(['*' + chr(97 + n)] * 9)}]}}\n" for n in range(12)
)
# Of CPU, which a busy machine does not change; far below what any of these files costs a naive parser.
SOON_SECONDS = 5.0

HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "NUL": ("pool.toml", b"\x00" * 100, "NUL"),
    "NUL within": ("pool.yaml", b"server:\n- name: a\x00b\n", "pool.yaml:2:10: a NUL"),
    "latin-1": ("pool.toml", "[[server]]\nname = 'ä'".encode("latin-1"), "pool.toml:2:9: byte 0xe4 is not UTF-8"),
    "utf-16": ("pool.toml", SERVER.encode("utf-16"), "UTF-16"),
    "utf-32": ("pool.toml", SERVER.encode("utf-32"), "UTF-32"),
    "deep array": ("pool.toml", b"x = " + b"[" * MANY, "nested"),
    "deep table": ("pool.toml", b"x = " + b"{a=" * MANY, "nested"),
    "deep key": ("pool.toml", b"a." * MANY + b"a = 1", "parts"),
    "deep header": ("pool.toml", b"[" + b"a." * MANY + b"a]", "parts"),
    "deep quoted key": ("pool.toml", b"'a' . " * MANY + b"a = 1", "parts"),
    "dots": ("pool.toml", b". " * MANY, "pool.toml:1:1"),
    "long line": ("pool.toml", b"x" * MANY, "pool.toml:1:"),
    "long blank": ("pool.toml", b" " * MANY + b"x", "pool.toml:1:"),
    "long list": ("pool.toml", b"x = [" + b'"a" ' * MANY, "pool.toml:1:"),
    "long name": ("pool.toml", b"-" * MANY + b"\nx", "pool.toml:1:"),
    "newlines": ("pool.toml", b"\n" * 250_000 + b"x", "pool.toml:250001:"),
    "many digits": ("pool.toml", b"\nx = " + b"1" * 100_000, "pool.toml:2:5: a number of too many digits"),
    "deep object": ("pool.json", b'{"a":' * MANY, "nested"),
    "deep list": ("pool.json", b"[" * MANY + b"]" * MANY, "nested"),
    "json digits": ("pool.json", b"[" + b"1" * 100_000 + b"]", "digits"),
    "json NaN": ("pool.json", b"[NaN]", "NaN"),
    "json key twice": ("pool.json", b'[{"name": "a",\n "name": "b"}]', "pool.json:2:2: the key 'name' is there twice"),
    "json tail": ("pool.json", b"[] x", "pool.json:1:4"),
    "yaml flow": ("pool.yaml", b"[" * MANY, "nested more than"),
    "yaml maps": ("pool.yaml", b"{a: " * MANY, "nested more than"),
    "yaml dashes": ("pool.yaml", b"- " * MANY, "nested more than"),
    "yaml questions": ("pool.yaml", b"? " * MANY, "nested more than"),
    "yaml bomb": ("pool.yaml", BOMB.encode(), "values"),
    "yaml merge bomb": ("pool.yaml", MERGE_BOMB.encode(), "values"),
    "yaml recursion": ("pool.yaml", b"server: &a [*a]\n", "within what it names"),
    "yaml tag": ("pool.yaml", b"server: !!python/object/apply:os.system ['touch hacked']\n", "pool.yaml:1:9: the tag"),
    "yaml map tag": ("pool.yaml", b"server: !x {a: 1}\n", "the tag"),
    "yaml scalar tag": ("pool.yaml", b"server: !!binary aGk=\n", "the tag"),
    "yaml documents": ("pool.yaml", b"--- 1\n--- 2\n", "second document"),
    "yaml key twice": ("pool.yaml", b"a: 1\na: 2\n", "pool.yaml:2:1: the key 'a' is there twice"),
    "yaml table as key": ("pool.yaml", b"{a: 1}: 2\n", "cannot be a key"),
    "yaml merge of a word": ("pool.yaml", b"a: {<<: 3}\n", "<<"),
    "yaml unknown alias": ("pool.yaml", b"a: *b\n", "*b"),
    "yaml times": ("pool.yaml", b"a: 1" + b":1" * MANY, "unknown key 'a'"),
    "yaml digits": ("pool.yaml", b"a: " + b"1" * 100_000, "digits"),
    "yaml many values": ("pool.yaml", b"[" + b"1," * MANY + b"1]", "300,000"),
    "yaml syntax": ("pool.yaml", b"a: b: c\n", "pool.yaml:1:5"),
    "yaml control": ("pool.yaml", b"a: \x01\n", "pool.yaml"),
    "toml many values": ("pool.toml", b"a = [" + b"1," * MANY + b"1]", "300,000"),
    "many headers": ("pool.toml", b"[[server]]\n" * 400_000, "300,000"),
    "huge": ("pool.toml", b"#" * (LARGEST_BYTES + 1), "larger than"),
    "a word": ("pool.yaml", b"just a word", "not tables"),
    "a number": ("pool.json", b"3", "not tables"),
    "nothing": ("pool.json", b"", "pool.json:1:1"),
    "open header": ("pool.toml", b"[[server]\n", "pool.toml:1:"),
    "open string": ("pool.toml", b'x = "', "pool.toml:1:"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_clear_error_soon(tmp_path: Path, what: str) -> None:
    name, content, named = HOSTILE[what]
    began = time.process_time()
    text = told(tmp_path, content, name)
    took_seconds = time.process_time() - began
    assert named in text
    assert len(text) < 2000
    assert took_seconds < SOON_SECONDS
    assert not Path("hacked").exists()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop", "missing", "name", "long", "nul"])
def test_path_that_is_no_file_is_reported_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "pool.toml")
    named = {"fifo": "FIFO", "missing": "no such file", "name": ".toml", "device": "device"}.get(
        kind, "cannot be"
    )
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(path)
        elif kind == "device":
            os.symlink("/dev/zero", path)
        elif kind == "loop":
            os.symlink(path, path)
        elif kind == "name":
            path = str(tmp_path / "pool.conf")
        elif kind == "long":
            path = str(tmp_path / ("x" * 5000 + ".toml"))
        elif kind == "nul":
            path = str(tmp_path / "a\0b.toml")
        with pytest.raises(PoolValidateError) as caught:
            PoolConfig.load(path, {})
    assert named in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_is_not_ours_to_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(SERVER)
    path.chmod(0)
    with pytest.raises(PoolValidateError) as caught:
        PoolConfig.load(path, {})
    assert "not permitted" in str(caught.value)


def test_thousands_of_unknown_keys_do_not_take_minutes(tmp_path: Path) -> None:
    keys = "".join(f"unknown_key_{n} = 1\n" for n in range(10_000))
    began = time.process_time()
    text = told(tmp_path, SERVER + keys)
    assert text.count("unknown key") == 10_000
    assert time.process_time() - began < 2 * SOON_SECONDS


def test_ten_thousand_addresses_of_one_port_are_compared_soon(tmp_path: Path) -> None:
    servers = "".join(
        f'[[server]]\nname = "s{n}"\nbind = "127.{n // 250}.{n % 250}.1:80"\napp = "a:b"\n'
        for n in range(10_000)
    )
    last = '[[server]]\nname = "all"\nbind = ":80"\napp = "a:b"\n'
    began = time.process_time()
    (problem,) = told(tmp_path, servers + last).splitlines()
    assert "overlaps" in problem
    assert time.process_time() - began < SOON_SECONDS
