"""The part that runs in the app's interpreter, here in this one: its answers, and that its children end with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from poolctl.config.checks import import_check, import_driver


def job(directory: Path, target: str, **more: Any) -> dict[str, Any]:
    return {
        "python": sys.executable,
        "target": target,
        "app_dir": str(directory),
        "cwd": str(directory),
        "env": {},
        "user": None,
        "factory": False,
        "timeout_seconds": 20.0,
        **more,
    }


def test_answers_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("app = print\n")
    (tmp_path / "two.py").write_text("import os; os._exit(2)\n")
    (tmp_path / "late.py").write_text("import time; time.sleep(300)\n")
    jobs = [
        job(tmp_path, "late:app", timeout_seconds=0.2),
        job(tmp_path, "two:app"),
        job(tmp_path, "one:app"),
        job(tmp_path, "one:ap", env={"PYTHONHASHSEED": "1"}),
    ]
    for at_once in (1, 4):
        late, two, one, typo = import_driver.run(jobs, at_once)
        assert late == {"kind": "timeout"}
        assert two == {"kind": "ended", "message": "exited with status 2"}
        assert one == {}
        assert typo == {"kind": "no attribute", "near": "app"}


def test_what_an_import_starts_goes_with_it(tmp_path: Path, until: Any) -> None:
    (tmp_path / "starts.py").write_text(
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        "pathlib.Path('pid').write_text(str(child.pid))\napp = print\n"
    )
    assert import_driver.run([job(tmp_path, "starts:app")], 1) == [{}]
    pid = int((tmp_path / "pid").read_text())

    def gone() -> bool:
        try:
            return "Z" in Path(f"/proc/{pid}/stat").read_text().split(") ")[1][:1]
        except OSError:
            return True

    until(gone)


def test_it_is_a_program_of_the_standard_library_alone(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import sys\nassert 'poolctl' not in sys.modules\napp = print\n")
    request = json.dumps({"jobs": [job(tmp_path, "one:app")], "at_once": 1})
    done = subprocess.run(
        [sys.executable, "-I", "-S", import_check.DRIVER],
        input=request,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(done.stdout) == [{}]


def test_nothing_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("app = print\n")
    before = os.listdir("/proc/self/fd")
    import_driver.run([job(tmp_path, "one:app")] * 5, 2)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_an_interpreter_that_is_lost_is_an_answer_too(tmp_path: Path) -> None:
    wanted = import_check.Import("/bin/true", "a:b", "/", "/", (), None, False, 1.0)
    ((_, finding),) = import_check.check_imports([wanted], {})
    assert "/bin/true did not answer" in finding.message


def test_a_fork_that_has_not_come_far_when_its_time_is_over_is_ended_too(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("import time\ntime.sleep(50)\n")
    for _ in range(20):
        late = import_driver.run([job(tmp_path, "late:app", timeout_seconds=0.0)], 1)
        assert late == [{"kind": "timeout"}]
