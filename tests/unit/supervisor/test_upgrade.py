"""Which versions may take over a pool, and commands of a supervisor whose package is replaced underneath it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.bootstrap import is_package_changed_since
from poolctl.control.answers import ErrorEntry, Result
from poolctl.control.client import stop_and_start
from poolctl.control.control_server import Request
from poolctl.control.protocol import PROTOCOL
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION
from poolctl.json_form import from_json
from poolctl.supervisor.verbs.upgrade import refusal_of_older
from poolctl.supervisor.verbs.verb import Call, RunningPoolctlBuild
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk
from tests.virtual_loop import run_hurried

AFTER = f"{poolctl.__version__}.1"
FIT = "cat > /dev/null; echo '{}'"  # the check of a version that can take over


@pytest.mark.parametrize(
    ("version", "protocol", "is_older"),
    [
        (poolctl.__version__, PROTOCOL, False),
        (AFTER, PROTOCOL, False),
        (AFTER, PROTOCOL + 1, False),
        ("1000.0rc1", PROTOCOL, False),
        (poolctl.__version__, PROTOCOL - 1, True),
        ("0.0.9", PROTOCOL, True),
        ("", PROTOCOL, True),
    ],
)
def test_an_older_version_is_refused_in_words(version: str, protocol: int, is_older: bool) -> None:
    refusal = refusal_of_older(version, protocol, ["/srv/pool.toml"])
    assert (refusal is not None) == is_older
    if refusal is not None:
        (error,) = refusal.errors
        assert refusal.exit_code == CONFLICT
        assert f"the pool runs poolctl {poolctl.__version__}, and " in error.message
        assert "is older: it cannot take over" in error.message
        assert error.hint == (
            f"install {poolctl.__version__} or a newer one; or {stop_and_start(['/srv/pool.toml'])}"
        )


async def test_command_that_cannot_import_names_upgrade_once_another_build_is_installed(
    tmp_path: Path,
) -> None:
    (tmp_path / "module.py").write_text("one")
    wait_until(lambda: not is_package_changed_since(time.time() - 0.02, str(tmp_path)))

    async def imports(call: Call) -> Result:
        raise ModuleNotFoundError("No module named 'poolctl.moved'")

    desk = Desk(web())
    desk.use(desk.files, build=RunningPoolctlBuild(str(tmp_path)))
    desk.verbs.add("metrics", imports)
    request = Request("metrics", {}, 1, 0)
    with pytest.raises(ModuleNotFoundError):
        await desk.verbs.handle(request, lambda line: None)
    (tmp_path / "module.py").write_text("two")
    answer = await desk.verbs.handle(request, lambda line: None)
    assert isinstance(answer, Result)
    (error,) = answer.errors
    assert (answer.exit_code, error.hint) == (CONFLICT, "poolctl upgrade")
    assert "another poolctl has been installed since" in error.message
    assert "No module named 'poolctl.moved'" in error.message


class Handing(Desk):
    """A supervisor that notes to whom it hands over."""

    def __init__(self) -> None:
        super().__init__(web())
        self.handed: list[tuple[list[str], list[str]]] = []

    def hand_over(self, keeper: list[str], supervisor: list[str]) -> None:
        self.handed.append((keeper, supervisor))

    async def upgrade(self, script: str = "exit 0", **options: Any) -> dict[str, Any]:
        call_options = {
            "version": AFTER, "protocol": PROTOCOL, "python": sys.version.split()[0], "build": "another",
            "keeper": ["keeper", "of it"], "supervisor": ["sh", "-c", script],
        }  # fmt: skip
        return await self.ask("upgrade", **{**call_options, **options})


async def test_pool_is_handed_over_to_the_keeper_and_the_supervisor_that_were_named() -> None:
    desk = Handing()
    answer = await desk.upgrade(FIT)
    assert desk.handed == [(["keeper", "of it"], ["sh", "-c", FIT])]
    assert (answer["exit_code"], answer["upgraded_from"]) == (0, os.getpid())
    assert [item["name"] for item in answer["items"]] == ["web"]


@pytest.mark.parametrize(
    ("script", "options", "reason"),
    [
        ("echo early >&2; echo no pydantic >&2; exit 3", {}, "no pydantic"),
        ("exit 3", {}, "exit status 3"),
        ("cat > /dev/null; echo hello", {}, "its check printed 'hello\\n'"),
        (r"cat > /dev/null; printf '\377'", {}, "its check printed '\ufffd'"),
        ("cat > /dev/null; echo 5", {}, "its check printed '5\\n'"),
        ("", {"supervisor": ["/nowhere/python"]}, "/nowhere/python cannot be run: No such file or directory"),
    ],
)
async def test_version_that_cannot_take_over_is_refused_with_its_reason_and_the_pool_goes_on(
    script: str, options: dict[str, Any], reason: str
) -> None:
    desk = Handing()
    answer = await desk.upgrade(script, force=True, **options)
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["message"]) == (
        CONFLICT,
        f"poolctl {AFTER} cannot take over: {reason}",
    )
    assert error["hint"] == (
        "nothing has changed, the pool goes on; repair that version, then repeat poolctl upgrade"
    )
    assert desk.handed == []


def test_version_that_does_not_finish_its_check_is_refused_and_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    async def upgrade() -> str:
        (error,) = (await Handing().upgrade(f"echo $$ > {file}; exec sleep 600", force=True))["errors"]
        while is_alive(int(file.read_text())):
            await asyncio.sleep(1)
        await asyncio.sleep(30)  # the loop closes its pipes
        return str(error["message"])

    assert run_hurried(100, upgrade()).endswith("cannot take over: sh did not finish within 90 s")


async def test_files_that_the_next_version_finds_wrong_are_its_answer() -> None:
    desk = Handing()
    check = json.dumps({"errors": [{"message": "unknown key", "file": "/pool.toml", "line": 3}]})
    answer = await desk.upgrade(f"cat > /dev/null; echo '{check}'", force=True)
    assert (answer["exit_code"], answer["errors"][0]["message"]) == (INVALID_CONFIGURATION, "unknown key")
    assert desk.handed == []


async def test_another_python_is_refused() -> None:
    desk = Handing()
    answer = await desk.upgrade(python="3.1.4")
    (error,) = answer["errors"]
    assert (answer["exit_code"], error["message"]) == (
        CONFLICT, f"the pool runs on Python {sys.version.split()[0]}, poolctl {AFTER} on 3.1.4",
    )  # fmt: skip
    assert error["hint"] == stop_and_start(desk.files.files)
    assert desk.handed == []
    major, minor = sys.version_info[:2]
    await desk.upgrade(FIT, python=f"{major}.{minor}.99")
    assert len(desk.handed) == 1


async def test_older_version_is_not_handed_over_to() -> None:
    desk = Handing()
    assert (await desk.upgrade(FIT, version="0.0.1"))["exit_code"] == CONFLICT
    assert desk.handed == []


def problem(message: str = "it is of a later version") -> str:
    return f"cat > /dev/null; echo '{json.dumps({'problem': message, 'errors': []})}'"


async def test_configuration_that_the_next_version_does_not_understand_must_be_that_of_the_files() -> None:
    desk = Handing()
    answer = await desk.upgrade(problem(), force=True)
    assert (answer["exit_code"], len(desk.handed)) == (0, 1)
    desk.files.written = [web("web"), web("other")]
    answer = await desk.upgrade(problem(), force=True)
    (error,) = answer["errors"]
    assert (answer["exit_code"], len(desk.handed)) == (CONFLICT, 1)
    assert error["message"] == (
        f"poolctl {AFTER} cannot go on with the configuration in force (it is of a later version), "
        "and the files differ from it"
    )
    assert error["hint"] == "poolctl reload --dry-run shows the difference, poolctl reload applies the files"
    desk.files.wrong = [from_json(ErrorEntry, {"code": 1322, "message": "unknown key"})]
    answer = await desk.upgrade(problem(), force=True)
    assert (answer["errors"][0]["message"], len(desk.handed)) == ("unknown key", 1)


async def test_live_changes_are_handed_on_and_live_servers_are_not() -> None:
    desk = Handing()
    await desk.ask("start")
    await desk.ask("scale", "web", workers=2)
    assert (await desk.upgrade(problem(), force=True))["exit_code"] == 0
    await desk.ask("remove", "web")
    assert (await desk.upgrade(problem(), force=True))["exit_code"] == CONFLICT
    assert len(desk.handed) == 1
