"""The local runner, whose workers are processes of this machine.

The functions here are for programs that start a supervisor, without an event loop.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from poolctl import bootstrap
from poolctl.config import default_interpreter, directory_of
from poolctl.keeper import fd_store
from poolctl.keeper.spawn import CompanionSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def companions(
    files: Sequence[str], directory: str, env: Mapping[str, str], withheld_variables: Sequence[str]
) -> dict[str, CompanionSpec]:
    """Return the programs to start with a pool's keeper, by name: the logger and the default interpreter's zygote.

    The keeper stores a socket to each program under the program's name. `files` are the pool's configuration files.
    Variables in `withheld_variables` are removed from the programs' environments.
    """
    default = default_interpreter(directory_of(files[0]), env)
    interpreter = default if default and os.access(default, os.X_OK) else sys.executable
    zygote = bootstrap.command(interpreter, "worker", "zygote")
    logger = bootstrap.command(sys.executable, "logs", directory, isolated=True)
    programs = {
        fd_store.LOGGER: CompanionSpec(
            logger, f"{directory}/logger.log", session=True, without=withheld_variables
        ),
    }
    if not _is_unsafe_for_root(interpreter, env):
        programs[f"{fd_store.ZYGOTE}{interpreter}"] = CompanionSpec(
            zygote, f"{directory}/zygotes.log", session=True, without=withheld_variables
        )
    return programs


def _is_unsafe_for_root(interpreter: str, env: Mapping[str, str]) -> bool:
    """Return whether this process runs as root, and other users can change the interpreter.

    The zygote of such an interpreter runs as its server's user, so it is started only when a server needs it.
    """
    if os.geteuid() != 0:
        return False
    from poolctl.config import find_path_others_may_change

    return bool(find_path_others_may_change(interpreter, env))
