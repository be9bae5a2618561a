"""Parts of poolctl run in interpreters where it is not installed; what is installed is known by version and digest."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import poolctl
from poolctl import bootstrap
from poolctl.bootstrap import installed_build, is_package_changed_since

PART = """
import gc, sys
collects_at_import = gc.isenabled()
def main():
    print(sys.argv[1:], collects_at_import, gc.isenabled(), {directory!r} in sys.path)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a copy of `bootstrap`, and a part that prints how it was started."""
    made = tmp_path / "poolctl"
    for folder in ("part", "__pycache__"):
        (made / folder).mkdir(parents=True)
        (made / folder / "__main__.py").write_text(PART.format(directory=str(tmp_path)))
    (made / "__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.3"\n')
    shutil.copy(bootstrap.__file__, made)
    return made


def installed(package: Path) -> ModuleType:
    """The package's `bootstrap`."""
    spec = importlib.util.spec_from_file_location("copied_bootstrap", package / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_runs_a_part_without_the_current_directory_or_isolated() -> None:
    file = os.path.abspath(bootstrap.__file__)
    assert bootstrap.command("/usr/bin/python", "worker", "a", "b") == [
        "/usr/bin/python", "-P", file, "worker", "a", "b",
    ]  # fmt: skip
    assert bootstrap.command("python", "logs", isolated=True) == ["python", "-I", file, "logs"]
    assert bootstrap.as_user(7, 8, ["true", "x"]) == [
        sys.executable, "-I", file, "worker", "as", "7", "8", "true", "x",
    ]  # fmt: skip


def test_part_gets_its_arguments_and_the_packages_neighbours_stay_out_of_the_path(package: Path) -> None:
    argv = installed(package).command(sys.executable, "part", "one", "two")
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("['one', 'two'] False True False\n", "")


def test_version_is_the_one_on_disk(package: Path) -> None:
    assert bootstrap.installed_version() == poolctl.__version__
    module = installed(package)
    assert module.installed_version() == "1.2.3"
    (package / "__init__.py").write_text('"""Another package."""\n')
    assert module.installed_version() == "?"
    (package / "__init__.py").unlink()
    assert module.installed_version() == "?"


def test_build_changes_with_each_file_and_its_name_and_not_with_bytecode(package: Path) -> None:
    builds = [installed_build(str(package))]
    (package / "__pycache__" / "x.pyc").write_text("x")
    assert installed_build(str(package)) == builds[0]
    assert len(builds[0]) == 32
    (package / "part" / "data").write_text("1")
    builds.append(installed_build(str(package)))
    (package / "part" / "data").write_text("2")
    builds.append(installed_build(str(package)))
    (package / "part" / "data").rename(package / "part" / "other")
    builds.append(installed_build(str(package)))
    (package / "part" / "other").rename(package / "other")
    builds.append(installed_build(str(package)))
    assert len(set(builds)) == 5


def test_build_is_the_same_in_another_directory(package: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(package, tmp_path / "elsewhere")
    assert installed_build(str(elsewhere)) == installed_build(str(package))
    assert installed_build() == installed_build(os.path.dirname(poolctl.__file__))


def test_build_that_cannot_be_read_is_unknown_and_counts_as_changed(package: Path) -> None:
    (package / "link").symlink_to(package / "nowhere")
    assert installed_build(str(package)) == ""
    assert is_package_changed_since(4e9, str(package))


def test_installation_is_as_new_as_its_newest_file(package: Path) -> None:
    (package / "part" / "new").write_text("new")
    newest = max(
        path.stat().st_ctime
        for path in package.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    )
    assert is_package_changed_since(newest, str(package))
    assert not is_package_changed_since(newest + 0.001, str(package))
    # A file that is moved here has an old modification time.
    os.utime(package / "part" / "new", (1, 1))
    assert is_package_changed_since(newest, str(package))


@pytest.mark.parametrize("version", ["0.53.0", "0.54", "1.0.0", "0.53.0.dev1", "unknown"])
def test_uvicorn_of_a_new_enough_or_unknown_version_is_no_problem(version: str) -> None:
    assert bootstrap.uvicorn_problem("/python", version) is None


def test_old_or_missing_uvicorn_is_a_problem_with_its_fix() -> None:
    assert bootstrap.uvicorn_problem("/python", None) == (
        "has no uvicorn", "install it there: /python -m pip install uvicorn",
    )  # fmt: skip
    for version in ("0.41.0", "0.52", "0.52.4"):
        assert bootstrap.uvicorn_problem("/python", version) == (
            f"has uvicorn {version}, and workers need 0.53 or newer",
            "upgrade it there: /python -m pip install --upgrade uvicorn",
        )
