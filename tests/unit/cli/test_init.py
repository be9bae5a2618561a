from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.cli.commands.init import existing_app
from tests.terminal import Screen

from .conftest import Command, Said


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
        ("app.py", "import flask\napp = flask.Flask(__name__)\n", "app:app"),
        ("wsgi.py", "application = get_wsgi_application()\n", "wsgi:application"),
        ("office/wsgi.py", "application = get_wsgi_application()\n", "office.wsgi:application"),
        ("main.py", "def make():\n    app = FastAPI()\n", ""),
    ],
)
def test_an_application_that_is_there_is_found(directory: Path, file: str, text: str, app: str) -> None:
    (directory / file).parent.mkdir(exist_ok=True)
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


def test_init_does_not_take_an_application_for_a_directory(poolctl: Command, directory: Path) -> None:
    said = poolctl("init", "hello:app")
    assert said.code == 2
    assert "app = 'hello:app' in pool.toml" in said.err
    assert not (directory / "hello:app").exists()


@pytest.fixture
def answered(poolctl: Command, directory: Path) -> Callable[..., tuple[int, bool, str]]:
    """`answered(typed, *args)`: exit code of init in a terminal, whether an application was written, what was asked."""

    def run(typed: str, *args: str) -> tuple[int, bool, str]:
        with Screen("stdin", "stderr", typed=typed) as screen:
            said: Said = poolctl("init", "fresh", "--force", *args)
        app = directory / "fresh" / "hello.py"
        there = app.exists()
        app.unlink(missing_ok=True)
        return said.code, there, screen.text()

    return run


@pytest.mark.parametrize(
    ("typed", "written", "questions"),
    [
        ("\n", True, 1), ("y\n", True, 1), ("YES\n", True, 1), ("n\n", False, 1), ("no\n", False, 1), ("", False, 1),
        ("perhaps\ny\n", True, 2),
    ],
)  # fmt: skip
def test_in_a_terminal_an_application_is_offered(
    answered: Callable[..., tuple[int, bool, str]], typed: str, written: bool, questions: int
) -> None:
    code, there, asked = answered(typed)
    assert (code, there) == (0, written)
    assert asked.count("Write a tiny application (hello.py) too? [Y/n] ") == questions
    assert asked.count("Please answer yes or no.") == questions - 1


def test_nothing_is_offered_quietly_or_where_there_is_an_application(
    answered: Callable[..., tuple[int, bool, str]], directory: Path
) -> None:
    assert answered("y\n", "--quiet") == (0, False, "")
    (directory / "fresh" / "main.py").write_text("app = FastAPI()\n")
    assert answered("y\n")[1:] == (False, "")


def test_named_file_is_written_and_the_next_step_names_it(poolctl: Command, directory: Path) -> None:
    said = poolctl("-c", "my shop/shop.toml", "init", "--app")
    assert said.out == (
        "wrote my shop/shop.toml and my shop/hello.py; next: poolctl -c 'my shop/shop.toml' start\n"
    )
    assert "poolctl --pool my-shop status" in (directory / "my shop" / "shop.toml").read_text()


ONE_FILE = "poolctl init DIRECTORY, or poolctl -c FILE init"


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["-c", "a.toml", "init", "fresh"], "init writes one file", ONE_FILE),
        (["-c", "a.toml", "-c", "b.toml", "init"], "init writes one file", ONE_FILE),
        (["-c", "a.yaml", "init"], "init writes a new TOML file, not 'a.yaml'", "-c NAME.toml"),
        (["-c", "pyproject.toml", "init"], "init writes a new TOML file, not 'pyproject.toml'", "-c NAME.toml"),
    ],
)  # fmt: skip
def test_unsuitable_file_is_refused(poolctl: Command, args: list[str], message: str, hint: str) -> None:
    said = poolctl(*args)
    assert (said.code, said.err) == (2, f"error: {message}\n  hint: {hint}\n")


def test_several_files_that_exist_are_named_together(poolctl: Command, directory: Path) -> None:
    poolctl("init", "fresh", "--app")
    said = poolctl("init", "fresh", "--app")
    assert said.err.splitlines()[0] == "error: fresh/pool.toml and fresh/hello.py already exist"
    (directory / "fresh" / "hello.py").unlink()
    assert poolctl("init", "fresh", "--app").err.splitlines()[0] == "error: fresh/pool.toml already exists"
