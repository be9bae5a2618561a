"""The file of `poolctl run MODULE:APP`, where there is none: one server with this application."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from poolctl.config import FILE_NAMES, default_env_file, default_interpreter, escaped, table_text
from poolctl.control.pool_paths import pool_dir_of_file, state_dir

_APPLICATION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
USUAL_PORT = 8000


def is_application(target: str) -> bool:
    """Whether this may be an application, "module:attribute"."""
    return _APPLICATION.fullmatch(target) is not None


@contextlib.contextmanager
def file_of_application(application: str, port: int) -> Iterator[str]:
    """A file, as if it stood in the working directory, with a server for this application; removed at the end.

    It is in the state directory of a pool whose file is the working directory's pool.toml. Raises ControlError.
    """
    here = os.getcwd()
    key = os.path.basename(pool_dir_of_file(os.environ, os.path.join(here, FILE_NAMES[0])))
    path = os.path.join(state_dir(os.environ, key, create=True), FILE_NAMES[0])
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
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
