"""The configuration file that `poolctl run MODULE:APP` writes for itself, with one server."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from poolctl.config import FILE_NAMES, default_env_file, default_interpreter, escaped, table_text
from poolctl.control.pool_paths import pool_dir_of_file, state_dir

_APPLICATION = re.compile(r"(?!unix:)[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
USUAL_PORT = 8000


def is_application(target: str) -> bool:
    """Whether this may be an application, "module:attribute", and not an address."""
    return _APPLICATION.fullmatch(target) is not None


def file_path() -> str:
    """The path of the file, in the state directory that belongs to the working directory. Raises ControlError."""
    key = os.path.basename(pool_dir_of_file(os.environ, os.path.join(os.getcwd(), FILE_NAMES[0])))
    return os.path.join(state_dir(os.environ, key, create=True), FILE_NAMES[0])


@contextlib.contextmanager
def written_file(path: str, application: str, port: int) -> Iterator[None]:
    """Context manager: write the file, with paths as in the working directory, and remove it at the end."""
    here = os.getcwd()
    paths = {
        "app_dir": here,
        "cwd": here,
        "env_file": default_env_file(here),
        "python": default_interpreter(here, os.environ),
    }
    server = {"name": "app", "bind": f"127.0.0.1:{port}", "app": application}
    with open(path, "w", encoding="utf-8") as file:
        file.write(table_text("[[server]]", server | {key: escaped(value) for key, value in paths.items()}))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
