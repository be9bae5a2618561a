"""Values that need no model: limits, texts from the environment, frozen tables, addresses."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.address import parse
from poolctl.config import ServerConfig
from poolctl.config.values.plain import (
    BadValue,
    FrozenDict,
    Interpolated,
    address_parts,
    binds_itself,
    exposed_url,
    fill_placeholders,
    host_and_port,
    is_port,
    number_if_interpolated,
    placeholders,
    refuse_long_path,
    truth_if_interpolated,
    values_in,
)


@pytest.mark.slow
def test_command_that_reads_files_does_not_search_for_plugins(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('[[server]]\nname = "web"\nbind = ":8080"\napp = "shop:app"\n')
    command = [sys.executable, "-X", "importtime", "-m", "poolctl", "validate"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic_core" in imported
    assert "importlib.metadata" not in imported


def test_texts_from_the_environment_are_numbers_and_truth_values_and_no_others_are() -> None:
    found = [number_if_interpolated(Interpolated(text)) for text in ("3", "1.5", "x", "")]
    assert found == [3, 1.5, "x", ""]
    assert (number_if_interpolated("3"), number_if_interpolated(4)) == ("3", 4)
    truths = [
        truth_if_interpolated(Interpolated(text)) for text in ("true", "TRUE", "1", "false", "0", "yes")
    ]
    assert truths == [True, True, True, False, False, "yes"]
    assert (truth_if_interpolated("true"), truth_if_interpolated(1)) == ("true", 1)


def test_path_of_a_unix_socket_has_at_most_107_bytes() -> None:
    refuse_long_path(parse("unix:/" + "x" * 106))
    with pytest.raises(BadValue, match="is longer than 107 bytes") as caught:
        refuse_long_path(parse("unix:/" + "x" * 107))
    assert caught.value.allowed == "a shorter one (unix(7))"
    with pytest.raises(BadValue, match="is longer"):
        refuse_long_path(parse("unix:/" + "\u00e4" * 60))


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ("host", ("host", "")), ("host:80/x?y#z", ("host", "80")), ("user:secret@host:1", ("host", "1")),
        ("[::1]:80", ("[::1]", "80")), ("[::1]", ("[::1]", "")), ("[::g]:80", None), ("[bad", None),
        (":80", ("", "80")),
        ("?x", ("", "")), ("a?b/c:9", ("a", "")), ("::1:80", None),
    ],
)  # fmt: skip
def test_host_and_port_are_those_of_the_authority(rest: str, found: tuple[str, str] | None) -> None:
    assert host_and_port(rest) == found


def test_port_is_a_number_from_1_to_65535_or_empty() -> None:
    assert [is_port(text) for text in ("", "1", "65535", "0", "65536", "8x", "\u0661", "1000000")] == [
        True, True, True, False, False, False, False, False,
    ]  # fmt: skip


def test_frozen_table_refuses_every_change() -> None:
    table = FrozenDict({"a": "1"})
    for change in (lambda: table.update(b="2"), lambda: table.pop("a"), lambda: table.clear(),
                   lambda: table.setdefault("b", "2"), lambda: table.__delitem__("a")):  # fmt: skip
        with pytest.raises(TypeError, match="does not change"):
            change()
    assert (hash(table), hash(FrozenDict())) == (hash(FrozenDict({"a": "1"})), hash(FrozenDict()))
    again = pickle.loads(pickle.dumps(table))
    assert (type(again), again) == (FrozenDict, {"a": "1"})


def test_program_binds_itself_if_it_gets_the_address_as_text() -> None:
    assert binds_itself(["x", "--port={port}"])
    assert binds_itself(("x",), {"AT": "{bind}"})
    assert binds_itself(["x"], socket="program")
    assert not binds_itself(["x", "{fd}"], {"A": 3}, "pool")
    assert not binds_itself("x {port}")
    assert not binds_itself(None, {"AT": "{port}"}, "program")
    assert sorted(placeholders("{host}:{port}")) == ["{host}", "{port}"]
    assert (placeholders(3), placeholders("{x}")) == ([], [])
    assert not binds_itself(["x", "{{port}}"], {"AT": "{{host}}"})
    assert (list(values_in({"a": 1})), list(values_in([1]))) == ([1], [])


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{port}", "80"), ("{{port}}", "{port}"), ("{{{port}}}", "{80}"), ("{{{{port}}}}", "{{port}}"),
        ('{"a":{"b":{port}}}', '{"a":{"b":80}}'), ("{{port}", "{80"), ("{port}}", "80}"), ("{{port}}}", "{port}}"),
        ("{port}{{port}}{port}", "80{port}80"), ("{{ .Name }} {{other}} {{}} {", "{{ .Name }} {{other}} {{}} {"),
        ("${port}", "$80"), ("{text}", "{port}"),
    ],
)  # fmt: skip
def test_placeholder_in_doubled_braces_is_literal_and_other_braces_stay(text: str, filled: str) -> None:
    assert fill_placeholders(text, {"port": "80", "text": "{port}"}) == filled
    assert bool(placeholders(text)) == ("80" in filled)


@pytest.mark.parametrize(
    ("bind", "tls", "expose", "parts"),
    [
        ("127.0.0.1:80", False, "http://127.0.0.1:80", {"host": "127.0.0.1", "port": "80"}),
        (":80", True, "https://localhost:80", {"host": "127.0.0.1", "port": "80"}),
        ("unix:/a", False, "unix:/a", {}),
        ("0.0.0.0:auto", False, "http://localhost:auto", {"host": "127.0.0.1", "port": "None"}),
        ("job:a", False, "", {}),
    ],
)
def test_exposed_address_follows_from_the_bound_one(
    bind: str, tls: bool, expose: str, parts: dict[str, str]
) -> None:
    address = (
        parse(bind)
        if not bind.startswith("job:")
        else ServerConfig(name="a", job=True, command=["x"]).address
    )
    assert exposed_url(address, tls) == expose
    assert address_parts(expose, address) == ({"url": expose} if expose else {}) | parts
