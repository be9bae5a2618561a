"""How a supervisor identifies itself: in its answer to a ping, and in the summary of the pool."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from poolctl import __version__
from poolctl.control.messages import PROTOCOL, Document


def identity(
    name: str,
    files: Sequence[str],
    keeper_pid: int,
    *,
    calm: bool,
    keeper_problem: str,
    not_served: Sequence[str],
) -> Document:
    """The pool's name and files, the versions, and the processes; `calm`: it takes no action by itself.

    `keeper_problem` is what is wrong with its keeper, if anything is; `not_served` names the tables beside the servers
    whose addresses cannot be served, each with the reason.
    """
    return {
        "name": name,
        "files": list(files),
        "version": __version__,
        "protocol": PROTOCOL,
        "python": sys.version.split()[0],
        "supervisor_pid": os.getpid(),
        "keeper_pid": keeper_pid,
        **({"calm": True} if calm else {}),
        **({"keeper_problem": keeper_problem} if keeper_problem else {}),
        **({"not_served": list(not_served)} if not_served else {}),
    }
