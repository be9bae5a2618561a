"""`poolctl top` without a terminal, and without a supervisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.main import main
from poolctl.control.pool_paths import pool_key
from tests.features.top.test_live_view import answering, many
from tests.real_pool import RealPool
from tests.stand_in import Answer, Send, always, item, result, stand_in


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("users", "orders")
    return real_pool


@pytest.mark.integration
def test_without_a_terminal_one_frame_of_all_servers_is_printed(pool: RealPool) -> None:
    with answering(pool, many(60)):
        done = pool.ok("top")
        assert "poolctl list -o json" in done.stderr
        assert done.stdout.count("● running") == 60
        assert "\x1b" not in done.stdout
        assert pool.ok("top", "--once", "--sort", "name").stderr == ""
        assert len(json.loads(pool.ok("top", "-o", "json").stdout)["items"]) == 60


@pytest.mark.integration
def test_without_a_supervisor_top_fails(pool: RealPool) -> None:
    assert pool.run("top").code == 6
    assert pool.run("top", "--sort", "size").code == 2


GATEWAY = {
    "state": "running", "problem": "", "addresses": ["http://127.0.0.1:80"], "routes": 1, "pid": 7,
    "uptime_seconds": 1.0, "restarts": 0,
}  # fmt: skip


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The socket's path of the pool in the working directory."""
    directory = tmp_path_factory.mktemp("p")
    monkeypatch.delenv("POOLCTL_CONFIG", raising=False)
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(directory / "run"))
    monkeypatch.chdir(directory)
    file = directory / "pool.toml"
    file.write_text('[[server]]\nname = "web"\nbind = ":80"\ncommand = ["true"]\n')
    found = directory / "run" / pool_key(str(file))
    found.mkdir(parents=True, mode=0o700)
    return found / "control.sock"


def answer_with(**members: Any) -> Answer:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "routes":
            return result({"alias": "shop", "requests": 1})
        return result(item("web"), name="shop", **members)

    return answer


def test_snapshot_is_of_the_selected_servers_with_their_errors(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_in(place, answer_with()) as requests:
        assert main(["top", "web", "--once"]) == 0
    assert capsys.readouterr().out.count("● running") == 1
    assert requests[0][1]["options"]["errors"] is True
    assert requests[0][1]["selector"]["targets"] == ["web"]


@pytest.mark.parametrize(
    ("words", "err"),
    [
        ([], "not a terminal: printing one snapshot (use `poolctl list -o json` in scripts)\n"),
        (["-q"], ""), (["--once"], ""),
    ],
)  # fmt: skip
def test_one_view_is_printed_with_a_remark_unless_it_was_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], err: str
) -> None:
    with stand_in(place, answer_with()) as requests:
        assert main(["top", *words]) == 0
    out, said = capsys.readouterr()
    assert (out.count("NAME"), said, [verb for verb, _ in requests]) == (1, err, ["stats", "ping"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "wide"], None),
        (["--sort", "waiting"], None),
        (["--routes", "--sort", "memory"], None),
    ],
)  # fmt: skip
def test_wrong_usage_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str | None
) -> None:
    assert main(["top", *words]) == 2
    err = capsys.readouterr().err
    assert message is None or err == f"error: {message}\n"


def test_document_has_the_gateway_if_there_is_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in(place, answer_with(gateway=GATEWAY)) as requests:
        assert main(["top", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gateway"] == GATEWAY
    assert "errors" not in requests[0][1]["options"]
    with stand_in(place, answer_with()):
        assert main(["top", "-o", "json"]) == 0
    assert "gateway" not in json.loads(capsys.readouterr().out)


def test_routes_are_shown_on_request_and_need_a_gateway(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_in(place, answer_with(gateway=GATEWAY)) as requests:
        assert main(["top", "--routes", "--once", "--sort", "errors"]) == 0
    out = capsys.readouterr().out
    assert [verb for verb, _ in requests] == ["stats", "ping", "routes"]
    assert "shop" in out.splitlines()[-1]
    assert "ROUTE" in out
    with stand_in(place, answer_with()):
        assert main(["top", "--routes", "--once"]) == 4
    hint = "a [gateway] or a [[route]] in the file adds one; --routes selects no servers"
    assert capsys.readouterr().err == f"error: the pool has no gateway\n  hint: {hint}\n"


def test_failure_of_the_supervisor_is_the_commands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": 4, "error": "E", "message": "no server matches"}
    with stand_in(place, always(exit_code=4, errors=[error])):
        assert main(["top", "nothing"]) == 4
    assert capsys.readouterr() == ("", "error: no server matches\n")
