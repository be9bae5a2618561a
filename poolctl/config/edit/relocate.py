"""A server's table for another file: relative paths are relative to the file that holds them."""

from __future__ import annotations

import os
from typing import Any

from poolctl.config.model.normalise import STEPS

PATHS = ("app_dir", "bind", "cwd", "env_file", "listen", "log", "python", "tls")


def relocated(table: dict[str, Any], base_dir: str, new_dir: str) -> dict[str, Any]:
    """The same server for a file in `new_dir`, where its relative paths began in `base_dir`."""
    if os.path.abspath(base_dir) == os.path.abspath(new_dir):
        return table
    found = dict(table)
    for key in PATHS:
        # What a reference will be is not known yet.
        if key in found and "${" not in str(found[key]):
            value = STEPS[key](found[key], base_dir)
            found[key] = list(value) if isinstance(value, tuple) else value
    # What they are where nobody says it.
    found.setdefault("cwd", base_dir)
    if "command" not in found:
        found.setdefault("app_dir", base_dir)
    return found
