"""Virtual environments that lack something: what workers need, or the libraries of an extra."""

from __future__ import annotations

import re
import sysconfig
import venv
from pathlib import Path

import poolctl
from tests.programs import program

OLD_UVICORN = "0.34.0"


def with_old_uvicorn(directory: Path) -> Path:
    """The interpreter of a new environment that has a uvicorn from before the oldest one that workers can use."""
    venv.create(directory, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "uvicorn").mkdir()
    (packages / "uvicorn" / "__init__.py").write_text(f'__version__ = "{OLD_UVICORN}"\n')
    metadata = packages / f"uvicorn-{OLD_UVICORN}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: uvicorn\nVersion: {OLD_UVICORN}\n")
    return directory / "bin" / "python"


def with_uvicorn_only(directory: Path) -> Path:
    """The interpreter of a new environment that has uvicorn, what that needs, and nothing else."""
    venv.create(directory, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    for name in ("uvicorn", "h11", "click"):
        (packages / name).symlink_to(Path(str(__import__(name).__file__)).parent)
    return directory / "bin" / "python"


def need_gateway() -> None:
    """Skip the test where HAProxy is not installed."""
    program("haproxy")


def without(directory: Path, *libraries: str) -> str:
    """The interpreter of a new environment with poolctl and all that is installed in this one but these libraries."""
    venv.create(directory, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = re.split(r"[-.]", path.name)[0]
        if name not in (*libraries, "poolctl") and path.suffix != ".pth":
            (packages / path.name).symlink_to(path)
    (packages / "poolctl").symlink_to(Path(poolctl.__file__).parent)
    return str(directory / "bin" / "python")
