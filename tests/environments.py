"""Virtual environments that cannot run workers."""

from __future__ import annotations

import venv
from pathlib import Path

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
