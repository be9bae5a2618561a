"""Environment variables with paths that an interpreter reads at its start, when its working directory is still /."""

from __future__ import annotations

import os
from collections.abc import Mapping

_LISTS = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
_PATHS = ("PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "COVERAGE_PROCESS_START", "COVERAGE_FILE")


def with_absolute_paths(env: Mapping[str, str], directory: str | None = None) -> dict[str, str]:
    """A copy of `env` in which relative paths in variables such as PYTHONPATH are made absolute, below `directory`.

    `directory` is by default the current one; if that has been removed, paths stay as they are. An empty entry of a
    list is the directory itself, as in a process that starts there.
    """
    variables = dict(env)
    if directory is None:
        try:
            directory = os.getcwd()
        except OSError:
            return variables
    for name in (*_LISTS, *_PATHS):
        if value := variables.get(name):
            paths = value.split(os.pathsep) if name in _LISTS else [value]
            variables[name] = os.pathsep.join(
                os.path.join(directory, path) if path else directory for path in paths
            )
    return variables
