"""Which versions may take over a pool, and commands of a supervisor whose package is replaced underneath it."""

from __future__ import annotations

import pytest

import poolctl
from poolctl.control.answers import Result
from poolctl.control.control_server import Request
from poolctl.control.protocol import PROTOCOL
from poolctl.exit_codes import CONFLICT
from poolctl.supervisor.verbs import verb
from poolctl.supervisor.verbs.upgrade import refusal_of_older
from poolctl.supervisor.verbs.verb import Call
from tests.unit.core.ordered_core import run, web
from tests.unit.supervisor.desk import Desk

AFTER = f"{poolctl.__version__}.1"


@pytest.mark.parametrize(
    ("version", "protocol", "is_older"),
    [
        (poolctl.__version__, PROTOCOL, False),
        (AFTER, PROTOCOL, False),
        (AFTER, PROTOCOL + 1, False),
        ("1000.0rc1", PROTOCOL, False),
        (poolctl.__version__, None, True),  # protocol 1 did not name its number
        (poolctl.__version__, PROTOCOL - 1, True),
        ("0.0.9", PROTOCOL, True),
        ("", PROTOCOL, True),
    ],
)
def test_an_older_version_is_refused_in_words(version: str, protocol: int | None, is_older: bool) -> None:
    refusal = refusal_of_older(version, protocol)
    assert (refusal is not None) == is_older
    if refusal is not None:
        (error,) = refusal.errors
        assert refusal.exit_code == CONFLICT
        assert f"the pool runs poolctl {poolctl.__version__}, and " in error.message
        assert "is older: it cannot take over" in error.message
        assert "poolctl stop and poolctl start" in error.hint


def test_command_that_cannot_import_names_upgrade_once_another_build_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builds = ["this", "this", "another"]
    monkeypatch.setattr(verb, "installed_build", lambda: builds.pop(0))

    async def imports(call: Call) -> Result:
        raise ModuleNotFoundError("No module named 'poolctl.moved'")

    async def scenario() -> None:
        desk = Desk(web())
        desk.verbs.add("metrics", imports)
        request = Request("metrics", {}, 1, 0)
        with pytest.raises(ModuleNotFoundError):
            await desk.verbs.handle(request, lambda line: None)
        answer = await desk.verbs.handle(request, lambda line: None)
        assert isinstance(answer, Result)
        (error,) = answer.errors
        assert (answer.exit_code, error.hint) == (CONFLICT, "poolctl upgrade")
        assert "another poolctl has been installed since" in error.message
        assert "No module named 'poolctl.moved'" in error.message

    run(scenario())
