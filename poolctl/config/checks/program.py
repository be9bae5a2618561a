"""Whether a server's program is there, where its own PATH and directory say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from poolctl.config.model.problems import Finding
from poolctl.config.model.server import ServerKeys


def missing_program(server: ServerKeys, env: Mapping[str, str]) -> Finding | None:
    """What is wrong with the program of a `command`, which gets the environment `env`."""
    assert server.command
    program = server.command[0]
    if "{" in program:
        return None
    if "/" in program:
        whole = os.path.join(server.cwd, program)
        found = os.access(whole, os.X_OK) and not os.path.isdir(whole)
        there = os.path.exists(whole)
    else:
        found = shutil.which(program, path=env.get("PATH", os.defpath)) is not None
        there = False
    if found:
        return None
    what = "is not executable" if there else "is not there"
    hint = f"chmod +x {program}" if there else "install it, or write its full path"
    return Finding(("command", 0), f"{program!r} {what}", hint, program)
