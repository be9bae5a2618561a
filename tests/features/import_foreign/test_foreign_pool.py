"""Files of other tools become servers, with a remark at its line for what has no equivalent; the pool is valid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
        ("compose.yml", "services: {a: {command: sleep 1, ports: 80}}", "1: ports: a value of another type"),
        ("compose.yml", "services: {a: {command: sleep 1, labels: 5}}", "1: labels: a value of another type"),
        ("e.json", '{"apps": [{"script": "a.js", "env": []}]}', "1: env: a value of another type"),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nEnvironment='a\n",
            "3: Environment='a: it cannot be read",
        ),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nExecStartPre=/bin/b\nExecStartPre=/bin/c d\n",
            "4: ExecStartPre=/bin/c d: hooks.before_start is one command",
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
