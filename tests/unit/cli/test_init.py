from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from poolctl.cli.commands.init import existing_app

from .conftest import Command


def test_a_starter_file_is_valid_and_written_once(poolctl: Command, directory: Path) -> None:
    said = poolctl("init", "fresh")
    assert said.code == 0
    assert said.out == "wrote fresh/pool.toml; next: name your application in it, then poolctl start\n"
    assert "hello:app" in said.err
    text = (directory / "fresh" / "pool.toml").read_text()
    assert (
        poolctl("-c", "fresh/pool.toml", "validate").out
        == "1 server, ok (applications not imported: --import)\n"
    )
    again = poolctl("init", "fresh")
    assert (again.code, again.err.splitlines()[1]) == (8, "  hint: use --force to overwrite")
    assert (directory / "fresh" / "pool.toml").read_text() == text
    assert poolctl("init", "fresh", "--force").code == 0


def test_with_an_application_it_can_be_started_at_once(poolctl: Command, directory: Path) -> None:
    said = poolctl("init", "fresh", "--app")
    assert said == (0, "wrote fresh/pool.toml and fresh/hello.py; next: poolctl start\n", "")
    assert poolctl("-c", "fresh/pool.toml", "validate", "--import").code == 0
    (directory / "fresh" / "pool.toml").unlink()
    taken = poolctl("init", "fresh", "--app")
    assert taken.code == 8
    assert not (directory / "fresh" / "pool.toml").exists(), "all or nothing"


@pytest.mark.parametrize(
    ("file", "text", "app"),
    [
        ("main.py", "from fastapi import FastAPI\n\napi = FastAPI(title='x')\n", "main:api"),
        ("app.py", "import starlette.applications as s\napp: s.Starlette = s.Starlette()\n", "app:app"),
        ("asgi.py", "application = get_asgi_application()\n", "asgi:application"),
        ("main.py", "def make():\n    app = FastAPI()\n", ""),
    ],
)
def test_an_application_that_is_there_is_found(directory: Path, file: str, text: str, app: str) -> None:
    (directory / file).write_text(text)
    assert existing_app(str(directory)) == app


def test_starter_file_names_the_application_found(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").unlink()
    (directory / "main.py").write_text("app = FastAPI()\n")
    assert poolctl("init").err == ""
    assert tomllib.loads((directory / "pool.toml").read_text())["server"][0]["app"] == "main:app"


def test_init_reports_a_directory_that_is_not_writable(poolctl: Command, directory: Path) -> None:
    (directory / "file").touch()
    said = poolctl("init", "file/below")
    assert said.code == 1
    assert "cannot write" in said.err
