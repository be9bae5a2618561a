"""Ensures that all compared programs have bytecode, so that no process compiles at its start."""

from __future__ import annotations

import compileall
import os
from pathlib import Path

import poolctl


def keep_bytecode(package: Path = Path(poolctl.__file__).parent) -> None:
    """Compile the package, as installers do, and let applications be compiled once as well.

    uvicorn has its bytecode from its installation. A checkout has no bytecode if `PYTHONDONTWRITEBYTECODE` is set,
    and would compile its modules at each start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(package, quiet=2)
