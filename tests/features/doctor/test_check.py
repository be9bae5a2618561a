"""What `doctor` looks at: every address of a pool, those of its tables included."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.pool_ref import PoolRef
from poolctl.config import load
from poolctl.feature import FEATURES
from poolctl.features.doctor._check import (
    CheckContext,
    CheckResult,
    Machine,
    ok,
    problem,
    warning,
)
from tests.stand_in import Send, always, item, result, stand_in


@pytest.mark.skipif("gateway" not in FEATURES, reason="there is no gateway")
def test_addresses_of_the_gateway_are_checked_like_those_of_servers(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[gateway]\nbind = [":80", "unix:edge.sock"]\n[[stream]]\nbind = ":5432"\nto = "10.0.0.5:1"\n'
        "[metrics]\n"
    )
    context = CheckContext(None, {})
    context.config = load(tmp_path / "pool.toml", {})
    assert context.config.problems == []
    assert {name: address.key for name, address in context.addresses.items()} == {
        "[metrics]": "127.0.0.1:9464",
        "[gateway]": "0.0.0.0:80",
        f"[gateway] unix:{tmp_path}/edge.sock": f"unix:{tmp_path}/edge.sock",
        "[[stream]] 10.0.0.5:1": "0.0.0.0:5432",
    }


POOL = """
[[server]]
name = "web"
bind = "127.0.0.1:8081"
command = ["sleep", "60"]
workers = 3
[[server]]
name = "auto"
bind = "127.0.0.1:auto"
command = ["sleep", "{port}"]
[[server]]
name = "sleeper"
bind = "127.0.0.1:8083"
command = ["sleep", "60"]
scale = { min = 0, max = 2 }
[[server]]
name = "off"
bind = "127.0.0.1:8084"
command = ["sleep", "60"]
disabled = true
[metrics]
"""
PING = {
    "name": "shop", "files": [], "version": "1", "protocol": 1, "python": "3.11", "supervisor_pid": 7, "keeper_pid": 8,
}  # fmt: skip


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> PoolRef:
    directory = tmp_path_factory.mktemp("p")
    (directory / "pool.toml").write_text(POOL)
    (directory / "run").mkdir(mode=0o700)
    return PoolRef([str(directory / "pool.toml")], str(directory / "run"))


ADDRESSES = {"web": "127.0.0.1:8081", "sleeper": "127.0.0.1:8083"}


def keys(context: CheckContext) -> dict[str, str]:
    return {name: address.key for name, address in context.addresses.items()}


def test_pool_without_a_supervisor_has_the_servers_of_its_file(pool: PoolRef) -> None:
    context = CheckContext(pool, {})
    assert (list(context.problems), context.about, context.supervisor_problem) == ([], None, "")
    assert [server.name for server in context.servers] == ["web", "auto", "sleeper"]
    assert context.processes == 4 + 3 + 1 + 2
    assert context.served == set()
    assert keys(context) == {**ADDRESSES, "[metrics]": "127.0.0.1:9464"}


def test_supervisor_says_what_runs(pool: PoolRef) -> None:
    failure = {"code": 1, "error": "E", "name": "auto", "message": "exited"}

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "ping":
            return result(**PING)
        if verb == "list":
            items = item("web"), item("auto", state="failed"), item("sleeper", state="sleeping")
            return result(*items, gateway={"a": 1}, changed={"b": 2})
        if verb == "routes":
            return result(generation=1)
        return result(errors=[failure], pool=None)

    with stand_in(Path(pool.socket), answer) as requests:
        context = CheckContext(pool, {})
    assert [verb for verb, _ in requests] == ["ping", "list", "routes", "status"]
    assert requests[1][1]["options"]["counts"] is True
    assert context.about is not None
    assert (context.about.supervisor_pid, context.supervisor_problem) == (7, "")
    assert [each.name for each in context.items] == ["web", "auto", "sleeper"]
    assert (context.gateway, context.changed) == ({"a": 1}, {"b": 2})
    assert {name: each.message for name, each in context.failures.items()} == {"auto": "exited"}
    assert context.served == {"web", "sleeper"}
    assert keys(context) == ADDRESSES


def test_supervisor_that_reads_its_files_is_asked_nothing_else(pool: PoolRef) -> None:
    with stand_in(Path(pool.socket), always(**PING, reading=True)) as requests:
        context = CheckContext(pool, {})
    assert [verb for verb, _ in requests] == ["ping"]
    assert context.supervisor_problem == "the supervisor is still reading the files"


def test_supervisor_that_answers_nonsense_is_silent_and_a_dead_one_is_not(pool: PoolRef) -> None:
    async def answer(verb: str, body: dict[str, Any], send: Send) -> bytes:
        return b"nonsense\r\n\r\n"

    with stand_in(Path(pool.socket), answer):
        context = CheckContext(pool, {})
    assert context.supervisor_problem != ""
    assert (context.about, context.items) == (None, ())
    Path(pool.socket).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(pool.socket)
    assert CheckContext(pool, {}).supervisor_problem == ""


def test_problems_of_files_are_kept(pool: PoolRef) -> None:
    file = Path(pool.files[0])
    file.write_text('[[server]]\nname = "a"\nbind = ":1"\napp = "a:b"\nbinf = "x"\npython = "gone"\n')
    found = CheckContext(pool, {}).problems
    assert [(each.line, each.message.partition(";")[0]) for each in found] == [(5, "unknown key 'binf'")]
    file.write_text('[[server]]\nname = "a"\nbind = "127.0.0.1:1"\ncommand = ["/gone"]\n')
    (outside,) = CheckContext(pool, {}).problems
    assert (outside.line, outside.name) == (4, "a")
    file.unlink()
    (missing,) = CheckContext(pool, {}).problems
    assert (missing.file, missing.error) == (pool.files[0], "ErrorPoolValidate")


def test_context_without_a_pool_is_empty() -> None:
    context = CheckContext(None, {"A": "1"})
    assert context.env == {"A": "1"}
    assert (context.servers, context.processes, context.served, context.addresses) == ([], 4, set(), {})


@pytest.mark.parametrize(
    ("content", "text", "value"), [("12\n", "12", 12), ("max\n", "max", None), ("-1", "-1", None), (None, "", None)]
)  # fmt: skip
def test_file_of_the_system_is_text_and_perhaps_a_number(
    tmp_path: Path, content: str | None, text: str, value: int | None
) -> None:
    path = tmp_path / "limit"
    if content is not None:
        path.write_text(content)
    machine = Machine(root=str(tmp_path))
    assert (machine.text("/limit"), machine.number("/limit")) == (text, value)


def test_result_is_shown_with_its_fix() -> None:
    for make, status in ((warning, "warning"), (problem, "problem")):
        made = make("ports", "it is taken", "free it")
        assert made == CheckResult(
            name="ports", check="ports", status=status, message="it is taken", fix="free it"
        )
        assert repr(made) == f"{status} ports: it is taken (free it)"
    assert ok("ports", "free") == CheckResult(
        name="ports", check="ports", status="ok", message="free", fix=""
    )
    assert repr(ok("ports", "free")) == "ok ports: free"
