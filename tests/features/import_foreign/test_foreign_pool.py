"""Files of other tools become servers, with a remark at its line for what has no equivalent; the pool is valid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolctl.config.values.problems import Tree
from poolctl.features.import_foreign._foreign_pool import (
    ForeignPool,
    ForeignServer,
    RenderedPoolFile,
    in_seconds,
    pool_text,
    signal_name,
    user_and_group,
)

from .conftest import Import, assert_valid

FILES = Path(__file__).parent / "files"
# Each with its licence beside it, and the names of the servers.
PUBLIC = {
    "honcho/Procfile": ["web", "worker", "worker_low"],
    "gunicorn/supervisor.conf": ["gunicorn"],
    "gunicorn/gunicorn.service": ["gunicorn"],
    "gunicorn/dirty_example/docker-compose.yml": ["tests", "server", "integration-test", "stash-test"],
    "gunicorn/celery_alternative/docker-compose.yml": ["tests"],
    "gunicorn/asgi_framework_compat/docker-compose.yml": [
        "django", "fastapi", "starlette", "quart", "litestar", "blacksheep",
    ],
    "supervisor/issue-550.conf": ["print_env"],
    "supervisor/issue-565.conf": ["hello"],
    "supervisor/issue-733.conf": ["nonexistent"],
    "supervisor/issue-986.conf": ["echo"],
}  # fmt: skip


@pytest.mark.parametrize("file", PUBLIC)
def test_file_of_a_public_project_is_imported(imported: Import, tmp_path: Path, file: str) -> None:
    said = imported((FILES / file).read_text(), os.path.basename(file))
    assert list(said.servers) == PUBLIC[file]


def test_two_servers_with_one_address_are_not_both_written(imported: Import, tmp_path: Path) -> None:
    said = imported("[program:a]\ncommand=uvicorn a:app\n[program:b]\ncommand=uvicorn b:app\n", "s.conf")
    assert len(said.servers) == 1
    assert_valid(tmp_path, said.text)
    assert "warning: left out: s.conf:" in said.err


@pytest.mark.parametrize(
    ("name", "text", "remark"),
    [
        (
            "compose.yml",
            "services: {a: {command: sleep 1, ports: 80}}",
            "1: ports: 80: a value of another type",
        ),
        (
            "compose.yml",
            "services: {a: {command: sleep 1, labels: 5}}",
            "1: labels: 5: a value of another type",
        ),
        ("e.json", '{"apps": [{"script": "a.js", "env": 5}]}', "1: env: 5: a value of another type"),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nEnvironment='a\n",
            "3: Environment='a: it cannot be read",
        ),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nExecStartPre=/bin/b\nExecStartPre=+/bin/c d\n",
            "4: ExecStartPre=+/bin/c: no equivalent of +",
        ),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nExecStopPost=+/bin/b\n",
            "3: ExecStopPost=+/bin/b: no equivalent of +",
        ),
        ("a.service", "[Service]\nExecStart=/bin/a\nUser=a b\n", '3: user = "a b": '),
        ("s.conf", "[program:a]\ncommand=a\numask=999\n", '3: umask = "999": '),
    ],
)
def test_value_that_cannot_be_taken_over_is_a_remark(
    imported: Import, name: str, text: str, remark: str
) -> None:
    said = imported(text, name)
    assert len(said.servers) == 1
    assert [each for each in said.remarks if each.startswith(f"{name}:{remark}")], said.remarks


def written(pool: ForeignPool, directory: Path, source: str = "a.conf") -> RenderedPoolFile:
    return pool_text(pool, source, str(directory), str(directory / "pool.toml"))


def a_server(pool: ForeignPool, name: str = "web", line: int = 3, **keys: Tree) -> ForeignServer:
    server = pool.add(name, line)
    for key, value in {"command": ["true"], **keys}.items():
        server.set(key, value)
    return server


def test_servers_have_names_that_are_allowed_and_their_own() -> None:
    pool = ForeignPool()
    names = [pool.add(name, 1).name for name in ("web", "WEB", "web", "a b/c", "--", "x" * 300)]
    assert names == ["web", "WEB-2", "web-3", "a-b-c", "server", "x" * 200]


def test_key_of_a_table_is_set_with_the_line_that_is_read() -> None:
    server = ForeignServer("web", 3)
    server.at = 5
    server.set("restart.limit", 3)
    server.set("restart.policy", "always")
    server.add_env("A", "${b}")
    server.add_env("C", "d")
    assert server.keys == {"restart": {"limit": 3, "policy": "always"}, "env": {"A": "$${b}", "C": "d"}}
    assert server.lines == {"restart": 5, "env": 5}
    assert repr(server) == "<ForeignServer web of line 3>"


def test_first_reason_for_leaving_a_server_out_is_written_with_it(tmp_path: Path) -> None:
    pool = ForeignPool()
    server = a_server(pool)
    server.leave_out("it is a container")
    server.leave_out("another reason")
    a_server(pool, "other", 9)
    found = written(pool, tmp_path)
    assert (found.servers, found.left_out) == (1, ["a.conf:3: web: it is a container"])
    assert '# a.conf:3: left out: it is a container\n# [[server]]\n# name = "web"\n' in found.text
    assert '\n[[server]]\nname = "other"\n' in found.text


def test_key_that_is_not_valid_becomes_a_remark_at_its_line(tmp_path: Path) -> None:
    pool = ForeignPool()
    server = a_server(pool, workers=1, restart={"policy": "always"})
    server.at = 7
    server.set("stop_timeout", "soon")
    pool.remark("a remark of the file", 0)
    found = written(pool, tmp_path)
    assert (found.servers, found.left_out, found.remarks) == (1, [], 2)
    assert "# a.conf:7: stop_timeout = \"soon\": 'soon' is not a duration" in found.text
    assert "# a remark of the file\n" in found.text
    assert 'restart = "always"\n' in found.text
    assert "workers" not in found.text, "one is usual"


def test_problem_of_a_key_in_a_table_leaves_the_other_keys(tmp_path: Path) -> None:
    pool = ForeignPool()
    backoff = {"initial": "soon", "max": "late", "factor": 2}
    server = a_server(pool, restart={"policy": "always", "backoff": backoff}, limits={"memory": "much"})
    found = written(pool, tmp_path)
    assert (found.servers, found.left_out) == (1, [])
    assert server.keys["restart"] == {"policy": "always", "backoff": {"factor": 2}}
    assert "limits" not in server.keys
    assert "# a.conf:3: restart.backoff.initial = \"soon\": 'soon' is not a duration" in found.text
    assert "# a.conf:3: limits.memory = \"much\": 'much' is not a size" in found.text


def test_server_without_a_valid_command_is_left_out(tmp_path: Path) -> None:
    pool = ForeignPool()
    a_server(pool, bind="127.0.0.1:99999")
    a_server(pool, "other", 9)
    found = written(pool, tmp_path)
    assert found.servers == 1
    assert "web: " in found.left_out[0]
    assert "out of range" in found.left_out[0]


def test_dependency_on_what_is_left_out_is_dropped_with_a_remark(tmp_path: Path) -> None:
    pool = ForeignPool()
    server = a_server(pool)
    server.at = 4
    server.set(
        "depends_on", [{"name": "db", "condition": "started"}, {"name": "queue", "condition": "started"}]
    )
    a_server(pool, "db", 6).leave_out("it is a container")
    a_server(pool, "queue", 9)
    lonely = a_server(pool, "lonely", 12, depends_on=[{"name": "nothing", "condition": "started"}])
    found = written(pool, tmp_path)
    assert "# a.conf:4: depends_on db: it is not among the servers" in found.text
    assert server.keys["depends_on"] == [{"name": "queue", "condition": "started"}]
    assert "depends_on" not in lonely.keys


def test_variables_that_are_not_set_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IS_SET", "1")
    pool = ForeignPool()
    a_server(pool, command=["no-such-program-here", "${NOT_SET_B}", "${IS_SET}", "${NOT_SET_A}"])
    found = written(pool, tmp_path)
    assert found.unset == ["NOT_SET_A", "NOT_SET_B"]
    assert found.missing == [], "what depends on them is not known"
    pool = ForeignPool()
    a_server(pool, command=["no-such-program-here"])
    (missing,) = written(pool, tmp_path).missing
    assert "no-such-program-here" in missing


@pytest.mark.parametrize("there", [True, False])
def test_file_of_variables_that_the_tool_reads_is_named_if_it_is_elsewhere(
    tmp_path: Path, there: bool
) -> None:
    source = tmp_path / "shop"
    source.mkdir()
    if there:
        (source / ".env").write_text("A=1\n")
    pool = ForeignPool()
    pool.env_file = ".env"
    server = a_server(pool)
    pool_text(pool, "shop/Procfile", str(source), str(tmp_path / "pool.toml"))
    assert ("env_file" in server.keys) is there
    server.keys.pop("env_file", None)
    pool_text(pool, "Procfile", str(source), str(source / "pool.toml"))
    assert "env_file" not in server.keys, "poolctl reads that of its own directory"


@pytest.mark.parametrize(
    ("text", "duration"), [("5", "5s"), (2.5, "2.5s"), (7, "7s"), ("5m", "5m"), ("", ""), ("1.", "1.")]
)
def test_plain_number_is_one_of_seconds(text: str | float, duration: str) -> None:
    assert in_seconds(text) == duration


@pytest.mark.parametrize(
    ("text", "name"),
    [("QUIT", "SIGQUIT"), ("sigquit", "SIGQUIT"), ("3", "SIGQUIT"), ("15", "SIGTERM"), ("99", "SIG99")],
)
def test_signal_has_its_whole_name(text: str, name: str) -> None:
    assert signal_name(text) == name


@pytest.mark.parametrize(
    ("user", "group", "value"), [("a", "b", "a:b"), ("a", "", "a"), ("", "b", ""), ("", "", "")]
)
def test_group_is_written_behind_its_user(user: str, group: str, value: str) -> None:
    assert user_and_group(user, group) == value
