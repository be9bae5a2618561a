"""Which Python runs a server's application: what `python` says, or the first of the usual places."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def interpreter(python: str | None, base_dir: str, env: Mapping[str, str]) -> str:
    """The absolute path of the interpreter for a server. `python` is its key's value: a file, a directory, or None."""
    if python is None:
        return default_interpreter(base_dir, env)
    return _of_environment(python) if os.path.isdir(python) else python


def default_interpreter(base_dir: str, env: Mapping[str, str]) -> str:
    """`$VIRTUAL_ENV`, then `.venv` beside the file, then the interpreter that runs poolctl."""
    for directory in (env.get("VIRTUAL_ENV", ""), os.path.join(base_dir, ".venv")):
        if directory:
            found = _of_environment(directory)
            if os.access(found, os.X_OK):
                return found
    return sys.executable


def _of_environment(directory: str) -> str:
    return os.path.join(directory, "bin", "python")
