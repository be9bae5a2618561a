"""The local runner, whose workers are processes of this machine.

The functions here are for programs that start a supervisor, or look for what one has left, without an event loop.
"""

from __future__ import annotations

import os
import sys

from poolctl import bootstrap
from poolctl.config import default_interpreter, directory_of
from poolctl.feature import features
from poolctl.keeper import fd_store, pool_files
from poolctl.keeper.spawn import CompanionSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .takeover import LocalOrphan


def companions(
    files: Sequence[str], directory: str, env: Mapping[str, str], withheld_variables: Sequence[str]
) -> dict[str, CompanionSpec]:
    """Return the programs to start with a pool's keeper, by name: the logger and the default interpreter's zygote.

    The keeper stores a socket to each program under the program's name. `files` are the pool's configuration files.
    Variables in `withheld_variables` are removed from the programs' environments.
    """
    interpreter = default_interpreter(directory_of(files[0]), env)
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


def has_orphans(directory: str) -> bool:
    """Whether workers, the logger or processes of features of this pool run without keeper and supervisor."""
    detached = [each.processes for each in features() if each.processes is not None]
    kinds = (*(kind for each in detached for kind in each.sockets), pool_files.WORKER, pool_files.LOGGER)
    return bool(pool_files.find_listeners(directory, *kinds))


def find_orphans(directory: str) -> list[LocalOrphan]:
    """The orphaned workers of the pool in this directory; the caller closes them. Blocks."""
    if not has_orphans(directory):
        return []
    from .takeover import find_orphans_and_pipes

    found, pipes = find_orphans_and_pipes(directory)
    pipes.close()
    return found


def _is_unsafe_for_root(interpreter: str, env: Mapping[str, str]) -> bool:
    """Return whether this process runs as root, and other users can change the interpreter.

    The zygote of such an interpreter runs as its server's user, so it is started only when a server needs it.
    """
    if os.geteuid() != 0:
        return False
    from poolctl.config import find_path_others_may_change

    return bool(find_path_others_may_change(interpreter, env))
