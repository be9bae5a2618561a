"""References to the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config.edit.toml_writer import escaped
from poolctl.config.values.normalise import interpolate
from poolctl.config.values.problems import Finding
from tests.config_files import SERVER, load_text, told

ENV = {"WHO": "me", "PORT": "8099", "EMPTY": "", "NESTED": "${WHO}", "TRUE": "true", "FLOAT": "1.5"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${WHO}", "me"),
        ("a${WHO}b${PORT}", "ameb8099"),
        ("${NOPE:-x}", "x"),
        ("${NOPE:-}", ""),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY}", ""),
        ("${WHO:-x}", "me"),
        ("${NOPE:-a:-b}", "a:-b"),
        ("${NESTED}", "${WHO}"),
        ("$${WHO}", "${WHO}"),
        ("$WHO $ {WHO}", "$WHO $ {WHO}"),
        ("$$", "$$"),
    ],
)
def test_references_are_replaced_once(tmp_path: Path, written: str, value: str) -> None:
    config = load_text(tmp_path, SERVER + f"env = {{ X = '{written}' }}\n", env=ENV)
    assert config.problems == []
    assert config[0].env["X"] == value


@pytest.mark.parametrize(
    "written", ["${}", "${1A}", "${A-B}", "${WHO", "${A B}", "${NOPE:-${WHO}}", "${WHÖ}"]
)
def test_invalid_reference_is_reported(tmp_path: Path, written: str) -> None:
    text = told(tmp_path, SERVER + f"env = {{ X = '{written}' }}\n", env=ENV)
    assert "server[0].env.X" in text
    assert "${VAR:-default}" in text
    assert ":5:9:" in text


def test_unset_variable_is_reported_once_with_the_fix(tmp_path: Path) -> None:
    text = told(tmp_path, SERVER.replace("hello:app", "${NOPE}"))
    assert len(text.splitlines()) == 1
    assert "pool.toml:4:1: server[0].app: the environment variable NOPE is not set" in text
    assert "${NOPE:-…}" in text


def test_references_work_in_every_format_and_every_place(tmp_path: Path) -> None:
    text = "server:\n- name: ${WHO}\n  bind: :${PORT}\n  app: h:a\n  tags: [a, '${WHO}']\n"
    (server,) = load_text(tmp_path, text, "pool.yaml", ENV)
    assert (server.name, server.bind, server.tags) == ("me", "0.0.0.0:8099", ("a", "me"))
    (server,) = load_text(tmp_path, "[defaults]\ntags = ['${WHO}']\n" + SERVER, env=ENV)
    assert server.tags == ("me",)


def test_a_number_or_a_truth_value_may_come_from_the_environment(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        SERVER
        + 'workers = "${W}"\ndisabled = "${TRUE}"\nlimits.open_files = "${PORT}"\nlog.max_size = "${PORT}"\n'
        + 'restart.backoff.factor = "${FLOAT}"\ntls = "${F}"\n',
        env={**ENV, "W": "3", "F": "false"},
    )
    assert config.problems == []
    (server,) = config
    assert (server.workers, server.disabled, server.limits.open_files) == (3, True, 8099)
    assert (server.log.max_size, server.restart.backoff.factor, server.tls) == (8099, 1.5, False)


def test_variable_that_holds_no_number_is_reported(tmp_path: Path) -> None:
    assert "server[0].workers: 'me'" in told(tmp_path, SERVER + 'workers = "${WHO}"\n', env=ENV)
    assert "disabled" in told(tmp_path, SERVER + 'disabled = "${WHO}"\n', env=ENV)


def test_a_string_that_looks_like_a_number_is_none(tmp_path: Path) -> None:
    assert "whole number" in told(tmp_path, SERVER + 'workers = "3"\n')


def test_variable_of_broken_text_is_reported(tmp_path: Path) -> None:
    assert "UTF-8" in told(tmp_path, SERVER + "env.X = '${BAD}'\n", env={"BAD": "a\udcff"})
    broken = '[{"name": "a", "bind": ":1", "app": "a:b", "cwd": "\\ud800"}]'
    assert "surrogate" in told(tmp_path, broken, "pool.json")


@given(
    st.recursive(st.text("a$${}:-"), lambda inner: st.lists(inner) | st.dictionaries(st.just("key"), inner))
)
def test_escaped_text_is_interpolated_to_itself(value: Any) -> None:
    findings: list[Finding] = []
    assert interpolate(escaped(value), {}, findings) == value
    assert findings == []
