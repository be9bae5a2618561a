"""Files and command lines of other tools become a valid pool.toml, with a comment for what has no equivalent."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.config import load, required_variables

from .cases import command_lines, compose, pm2, supervisord, systemd
from .cases.case import COMMAND, Case
from .conftest import Said

FILES = Path(__file__).parent / "files"
# Of public projects, each with its licence beside it, and the names of the servers.
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

CASES = {
    f"{module.__name__.rpartition('.')[2]}: {name}": case
    for module in (command_lines, compose, pm2, supervisord, systemd)
    for name, case in module.CASES.items()
}


@pytest.mark.usefixtures("installed_haproxy")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_foreign_file_becomes_servers_and_comments(
    poolctl: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)
    for name, text in {**case.files, case.file: case.text}.items():
        if name != COMMAND:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text.replace("DIRECTORY", str(tmp_path)))
    words = [COMMAND, *shlex.split(case.text)] if case.file == COMMAND else [case.file, *case.given]
    code, out, err = poolctl("import", *words)
    text, err = (printed.replace(str(tmp_path), "DIRECTORY") for printed in (out, err))
    if case.error:
        assert (code, err.removeprefix("error: ").rstrip()) == (case.code, case.error)
        return
    assert code == 0, err
    tables = {table.pop("name"): table for table in tomllib.loads(text)["server"]}
    if "" in case.servers:
        tables[""] = tables.popitem()[1]
    assert [*tables] == [*case.servers]
    assert tables == case.servers
    comments = [line[2:].removeprefix(f"{case.file}:") for line in text.splitlines() if line.startswith("# ")]
    assert comments[1:] == [*case.comments]
    assert case.warning in err
    target = str(tmp_path / "pool.toml")
    config = load(target, dict.fromkeys(required_variables(out), "1"), {target: out})
    assert [str(problem) for problem in config.problems] == []


@pytest.mark.parametrize("file", PUBLIC)
def test_file_of_a_public_project_is_imported(poolctl: Callable[..., Said], file: str) -> None:
    code, out, err = poolctl("import", str(FILES / file))
    assert code == 0, err
    assert [server["name"] for server in tomllib.loads(out)["server"]] == PUBLIC[file]
