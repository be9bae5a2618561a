"""What is compared is installed: nothing is compiled again in each of its processes."""

from __future__ import annotations

import compileall
import os
from pathlib import Path

import poolctl


def keep_bytecode(package: Path = Path(poolctl.__file__).parent) -> None:
    """Compile the package, as an installer does with every package, and let applications be compiled once, too.

    uvicorn has its bytecode from its installation. A checkout has none where `PYTHONDONTWRITEBYTECODE` is set, and 150
    modules of it were compiled at each start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(package, quiet=2)
