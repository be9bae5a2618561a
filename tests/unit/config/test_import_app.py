"""The program that imports an app: its answer for each way in which an import fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from poolctl.config.checks.external_checks import IMPORT_APP, ImportJob, check_imports
from tests.environments import without
from tests.unit.config.importable_apps import outside


@pytest.mark.slow
def test_apps_that_import_have_no_problem(apps: Path) -> None:
    (apps / "x.env").write_text("FILE=1\nKEY=file\n")
    found = outside(
        apps,
        'app = "good:app"',
        'app = "good:make"\nfactory = true',
        'app = "good:Box.app"',
        'app = "noisy:app"',
        'app = "reads:app"\ncwd = "/"\nenv = { KEY = "value" }\nenv_file = "x.env"',
        'app = "seeded:app"\nenv = { PYTHONOPTIMIZE = "1" }',
        'app = "threads:app"',
        import_apps=True,
    )
    assert found == []


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("good:ap", "good has no 'ap'; did you mean 'app'?"),
        ("good:app.inner", "good has no 'app.inner'"),
        ("good:value", "good:value is of type int, not an ASGI or WSGI application"),
        ("goood:app", "there is no module 'goood'"),
        ("missing:app", "missing imports 'no_such_library', which is not installed"),
        ("syntax:app", "syntax.py:1"),
        ("boom:app", "RuntimeError: boom boom"),
        ("ends:app", "exited with status 3"),
        ("exits:app", "exited with status 4"),
        ("killed:app", "killed by SIGKILL"),
        ("asks:app", "EOFError"),
    ],
)
def test_an_app_that_cannot_be_imported_says_why(apps: Path, app: str, told: str) -> None:
    (text,) = outside(apps, f'app = "{app}"', import_apps=True)
    assert told in text
    assert "pool.toml:4:1: server[0].app: " in text
    assert outside(apps, f'app = "{app}"') == []


def test_line_of_the_app_that_failed_is_reported(apps: Path) -> None:
    (text,) = outside(apps, 'app = "boom:app"', import_apps=True)
    assert f"{apps}/boom.py:2" in text


def test_the_place_of_a_syntax_error_is_reported_once(apps: Path) -> None:
    (text,) = outside(apps, 'app = "syntax:app"', import_apps=True)
    assert text.count("syntax.py") == 1
    assert f"syntax cannot be imported: SyntaxError: invalid syntax ({apps}/syntax.py:1)" in text


def test_import_program_needs_the_standard_library_only(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import sys\nassert 'poolctl' not in sys.modules\napp = print\n")
    job = {"target": "one:app", "app_dir": str(tmp_path), "cwd": str(tmp_path), "user": None}
    request = json.dumps(job | {"factory": False, "interface": "auto"})
    done = subprocess.run(
        [sys.executable, "-I", "-S", IMPORT_APP, request],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "{}"


def test_answer_says_by_what_a_wsgi_application_is_served(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def app(environ, start_response): ...\nasync def asgi(a, b, c): ...\n")
    job = ImportJob(
        sys.executable, "one:app", False, "auto", str(tmp_path), str(tmp_path), (), None, timeout_seconds=60.0
    )
    jobs = [
        job, job._replace(interface="wsgi"), job._replace(interface="asgi"), job._replace(factory=True),
        job._replace(target="one:asgi"), job._replace(target="one:asgi", interface="wsgi"),
        job._replace(python=without(tmp_path / "own", "a2wsgi")),
    ]  # fmt: skip
    found = list(check_imports(jobs, {}))
    assert [middleware for _, _, middleware in found] == ["a2wsgi", "a2wsgi", "", "", "", "", "uvicorn"]
    messages = [finding and finding.message for _, finding, _ in found]
    assert messages[:2] + messages[3:5] == [None] * 4
    assert "it is a WSGI application" in str(messages[2])
    assert "it is an ASGI application" in str(messages[5])
    assert "has no a2wsgi" in str(messages[6])
