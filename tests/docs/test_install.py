"""poolctl and the tutorial's environment are installed as the pages say, with nothing but the system's python3."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import README, ROOT, some
from tests.real_pool import RealPool

SYSTEM = "/usr/local/bin:/usr/bin:/bin"
CAN_INSTALL = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"


@pytest.mark.slow
@pytest.mark.timeout(600)  # downloads
def test_poolctl_is_installed_as_the_readme_says_and_runs_its_first_pool(
    reader: Any, real_pool: RealPool, tmp_path: Path
) -> None:
    if subprocess.run(
        ["env", f"PATH={SYSTEM}", "python3", "-c", CAN_INSTALL], capture_output=True
    ).returncode:
        pytest.skip("the system has no python3 of 3.11 or newer with venv")
    install, application = some("README", "Install", "sh")
    files = some("README", "A first pool", "sh")[0]
    steps = [
        f"export HOME={tmp_path} PATH={SYSTEM}",
        f"cd {ROOT}",
        install,
        f"cd {real_pool.directory}",
        application,
        files,
        "poolctl start",
        "poolctl list -o name",
        "poolctl stop",
        *some("tutorial", "An environment", "sh"),
        some("tutorial", "The application", "sh")[0],
        *some("tutorial", "Tests", "sh"),
    ]
    output = reader("\n".join(steps))
    assert "\nqueue\nweb\n" in output or "\nweb\nqueue\n" in output
    assert "1 passed" in output
    assert (tmp_path / ".local" / "bin" / "poolctl").resolve().is_relative_to(tmp_path)


def test_no_page_installs_poolctl_from_an_index() -> None:
    pages = [README, *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
    found = [
        f"{page.name}: {line}"
        for page in pages
        for line in page.read_text().splitlines()
        if "install" in line and ("poolctl[" in line or "install poolctl" in line)
    ]
    assert found == []
