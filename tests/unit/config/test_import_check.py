"""Imports of apps in processes of their interpreters: their answers, and that what they start ends with them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.config.checks.import_check import IMPORT_APP, Import, check_imports


def job(directory: Path, target: str, **more: Any) -> Import:
    keys = {
        "python": sys.executable, "target": target, "app_dir": str(directory), "cwd": str(directory), "env": (),
        "user": None, "timeout_seconds": 20.0,
    }  # fmt: skip
    return Import(**{**keys, **more})


def messages(*jobs: Import) -> list[str]:
    return [finding.message for _, finding in check_imports(jobs, dict(os.environ))]


def test_answers_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("app = print\n")
    (tmp_path / "two.py").write_text("import os; os._exit(2)\n")
    (tmp_path / "late.py").write_text("import time; time.sleep(300)\n")
    late, two, typo = messages(
        job(tmp_path, "late:app", timeout_seconds=0.2),
        job(tmp_path, "two:app"),
        job(tmp_path, "one:app"),
        job(tmp_path, "one:ap", env=(("PYTHONHASHSEED", "1"),)),
    )
    assert late == "late was not imported within 0.2 s"
    assert two == "the process ended while it imported two: exited with status 2"
    assert typo == "one has no 'ap'"


def test_a_process_that_an_import_starts_ends_with_it(tmp_path: Path, until: Any) -> None:
    (tmp_path / "starts.py").write_text(
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        "pathlib.Path('pid').write_text(str(child.pid))\napp = print\n"
    )
    assert messages(job(tmp_path, "starts:app")) == []
    pid = int((tmp_path / "pid").read_text())

    def gone() -> bool:
        try:
            return "Z" in Path(f"/proc/{pid}/stat").read_text().split(") ")[1][:1]
        except OSError:
            return True

    until(gone)


def test_import_program_needs_the_standard_library_only(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import sys\nassert 'poolctl' not in sys.modules\napp = print\n")
    request = f'{{"target": "one:app", "app_dir": "{tmp_path}", "cwd": "{tmp_path}", "user": null}}'
    done = subprocess.run(
        [sys.executable, "-I", "-S", IMPORT_APP, request],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "{}"


def test_nothing_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("app = print\n")
    before = os.listdir("/proc/self/fd")
    assert messages(*[job(tmp_path, "one:app")] * 5) == []
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_program_that_is_no_interpreter_has_a_message(tmp_path: Path) -> None:
    assert "exited with status 0" in messages(job(tmp_path, "a:b", python="/bin/true"))[0]
    assert "cannot be run: No such file" in messages(job(tmp_path, "a:b", python=str(tmp_path / "gone")))[0]


def test_variables_of_a_server_are_in_no_argument(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(
        "import os, pathlib\nassert os.environ['KEY'] == 'hidden'\n"
        "assert 'hidden' not in pathlib.Path('/proc/self/cmdline').read_text()\napp = print\n"
    )
    env = (("KEY", "hidden"), ("PYTHONHASHSEED", "1"))
    assert messages(job(tmp_path, "looks:app", env=env)) == []


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="poolctl-open-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_code_that_a_servers_environment_names_runs_as_its_user(open_directory: Path) -> None:
    # Such as sitecustomize, which an interpreter imports from PYTHONPATH when it starts.
    (open_directory / "sitecustomize.py").write_text(
        f"import os\nif os.getuid() == 0: os.mkdir('{open_directory}/ran_as_root')\n"
    )
    (open_directory / "one.py").write_text("import os\nassert os.getuid() == 65534\napp = print\n")
    env = (("PYTHONPATH", str(open_directory)),)
    assert messages(job(open_directory, "one:app", env=env, user="nobody", python="/usr/bin/python3")) == []
    assert not (open_directory / "ran_as_root").exists()
