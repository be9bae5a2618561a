"""What a pool is called when its file gives it no name."""

from __future__ import annotations

import os
import re

_USUAL = frozenset({"pool.toml", "pool.yaml", "pool.yml", "pool.json", "pyproject.toml"})


def default_name(file: str) -> str:
    """The directory's name for a file of the usual name, else the file's own without its ending."""
    directory, base = os.path.split(file)
    name = os.path.basename(directory) if base in _USUAL else os.path.splitext(base)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "pool"
