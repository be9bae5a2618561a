"""`poolctl doctor`: what it prints, with and without a file and a problem."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolctl.features.doctor._check import CheckContext, CheckResult
from poolctl.features.doctor.command import run_check
from tests.configuration import server
from tests.features.doctor.test_check_machine import examined, only
from tests.real_pool import RealPool
from tests.unit.cli.conftest import Command

Found = dict[str, list[dict[str, str]]]


@pytest.mark.integration
@pytest.mark.capability
def test_a_sound_pool_has_no_problem_running_or_not(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    code, found = examined(real_pool)
    assert code == 0, [each for group in found.values() for each in group if each["status"] != "ok"]
    assert {"open files", "ports", "kernel", "memory", "interpreter"} <= found.keys()
    real_pool.ok("start")
    code, found = examined(real_pool)
    assert code == 0, [each for group in found.values() for each in group if each["status"] != "ok"]
    assert only(found, "servers", "ok")["message"] == "1 ready"
    assert only(found, "ports", "ok")["message"] == "1 served, 0 free"
    assert only(found, "kernel", "ok")["message"].endswith(" has what the pool needs")
    is_all_well = all(each["status"] == "ok" for group in found.values() for each in group)
    assert (real_pool.ok("doctor", "--quiet").stdout == "") is is_all_well
    real_pool.ok("stop", "web")
    _, found = examined(real_pool)
    assert only(found, "servers", "ok")["message"] == "1 stopped"


@pytest.mark.integration
def test_doctor_without_a_file_works_and_reports_that(real_pool: RealPool) -> None:
    code, found = examined(real_pool)
    assert code == 0
    assert "only the machine was checked" in only(found, "configuration", "ok")["message"]


@pytest.mark.integration
def test_quiet_says_what_is_not_ok_and_nothing_else(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", "[[server]]\nname = 1\n")
    done = real_pool.run("doctor", "--quiet")
    assert done.code == 1
    assert "problem  configuration" in done.stdout
    assert "→ " in done.stdout
    assert "ok " not in done.stdout


def test_a_check_that_fails_itself_is_a_warning() -> None:
    def explodes(context: CheckContext) -> list[CheckResult]:
        raise RuntimeError("no such thing")

    (result,) = run_check(explodes, CheckContext(None, {}))
    assert (result.status, result.check) == ("warning", "explodes")
    assert result.message == "the check itself failed: RuntimeError: no such thing"


def test_a_fix_that_consecutive_problems_share_is_printed_once(poolctl: Command, directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [each.getsockname()[1] for each in (one, other)]
        text = "".join(server(f"s{port}", bind=f"127.0.0.1:{port}", app="hello:app") for port in ports)
        (directory / "pool.toml").write_text(text)
        said = poolctl("doctor", "--quiet")
        document = poolctl("doctor", "-o", "json").json
    lines = said.out.splitlines()
    at = [number for number, line in enumerate(lines) if "is in use by" in line]
    assert at[1] == at[0] + 1, said.out
    assert [line.lstrip()[0] for line in lines[at[0] :][:3]] == ["p", "p", "→"]
    fixes = {item["fix"] for item in document["items"] if "is in use by" in item["message"]}
    assert len(fixes) == 1, fixes
    assert "" not in fixes


def test_document_has_the_checks_as_items(poolctl: Command) -> None:
    document = poolctl("doctor", "-o", "json").json
    assert list(document) == ["schema", "items", "errors"]
    for found in document["items"]:
        assert list(found) == ["name", "check", "status", "message", "fix"]
        assert bool(found["fix"]) == (found["status"] != "ok")


@pytest.mark.parametrize(
    ("named", "message", "fix"),
    [
        ((), None, None),
        (
            ("--pool", "nowhere"),
            "no running pool is named 'nowhere'",
            "start it from its file: poolctl -c FILE start",
        ),
    ],
)
def test_pool_that_is_named_and_missing_is_a_problem_and_the_machine_is_checked(
    poolctl: Command, named: tuple[str, ...], message: str | None, fix: str | None
) -> None:
    done = poolctl("doctor", *named, "-o", "json")
    assert any(each["check"] == "kernel" for each in done.json["items"])
    found = [(each["message"], each["fix"]) for each in done.json["items"] if each["check"] == "pool"]
    assert found == ([] if message is None else [(message, fix)])
