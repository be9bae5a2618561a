"""The keeper: holds descriptors, starts and reaps programs. It knows nothing about servers and makes no decisions.

    keeper DIRECTORY PLAN [BEGUN]
    keeper DIRECTORY LINK_FD

In the first form the supervisor, its only client, may die at any moment; the keeper restarts it and sends the new
one all reports that the old one has not acknowledged. PLAN is a JSON object: `supervisor`, its argument vector;
`control`, the descriptor of its listener; `lifeline`, -1 or a pipe whose end of file requests the end of the pool;
`inherited`, the names of systemd's sockets; `begun`, the names of the children whose pids are in BEGUN (see
spawn.in_background), including the supervisor; `without`, the variables removed from the environment of the others.
The descriptors of systemd's sockets and of the links to the children follow the last one named. Alternatively PLAN
has `supervisor`, `donor`, the descriptor of a link to a supervisor that has lost its keeper and sends everything to
the new one, and `donor_process`, the pid and start time of that supervisor. In the second form the client is the
program that holds the other end of LINK_FD, and everything ends with it.
"""

from __future__ import annotations

import json
import os
import sys

from ..platform import become_subreaper, name_process, raise_descriptor_limit
from . import wire
from .keeper import Keeper


def _detach_from_log() -> None:
    """Write to the log only if the keeper itself cannot run; otherwise the log belongs to the supervisor."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)


def main() -> None:
    """Run the keeper described by the arguments until the pool has ended."""
    directory, argument, *begun = sys.argv[1:]
    name_process("poolctl-keeper")
    if begun:
        _detach_from_log()
    become_subreaper()
    open_files = raise_descriptor_limit()
    try:
        if argument.startswith("{"):
            plan: wire.Message = {"open_files": open_files, "pids": []}
            for each in (argument, *begun):
                plan |= json.loads(each)
            keeper = Keeper(directory, plan["supervisor"], tuple(plan["open_files"]))
            if "restored" in plan:
                keeper.resume(plan["restored"])
            else:
                keeper.begin(plan)
        else:
            keeper = Keeper(directory, [], open_files)
            keeper.attach(wire.over(int(argument)))
        keeper.run()
    except BaseException:
        import traceback  # rarely needed

        with open(os.path.join(directory, "supervisor.log"), "a") as log:
            traceback.print_exc(file=log)
        raise
