"""Whether a server's program can be run, and whether a file that the pool appends to can be opened or made."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping

from poolctl.config.model.problems import Finding
from poolctl.config.model.server_keys import ServerKeys
from poolctl.safe_open import UnsafePath, check_appendable


def missing_program(server: ServerKeys, env: Mapping[str, str]) -> Finding | None:
    """The problem of the program of a `command`, which gets the environment `env`."""
    assert server.command
    program = server.command[0]
    if "{" in program:
        return None
    what, hint = "is not there", "install it, or write its full path"
    if "/" in program:
        whole = os.path.join(server.cwd, program)
        if os.access(whole, os.X_OK) and not os.path.isdir(whole):
            return None
        if os.path.exists(whole):
            what, hint = "is not executable", f"chmod +x {program}"
    elif shutil.which(program, path=env.get("PATH", os.defpath)):
        return None
    return Finding(("command", 0), f"{program!r} {what}", hint, program)


def unwritable(key: tuple[str | int, ...], path: str) -> list[Finding]:
    """The problem of a file that this user cannot append to; an empty list for a good one. Changes nothing."""
    try:
        check_appendable(path)
    except UnsafePath as refused:
        reason, _, fix = str(refused.strerror).partition("; ")
        return [Finding(key, f"{path} cannot be written: {reason}", fix or "name another file", path)]
    except IsADirectoryError:
        return [Finding(key, f"{path} is a directory", "name a file in it", path)]
    except OSError as error:
        reason, fix = error.strerror or str(error), "name another file"
        if error.errno == errno.EACCES:
            fix = f"let the pool's user (uid {os.geteuid()}) write there, or name another file"
        elif error.errno == errno.ENOTDIR:
            above = path
            while not os.path.lexists(above):
                above = os.path.dirname(above)
            reason = f"{above} is no directory"
        return [Finding(key, f"{path} cannot be written: {reason}", fix, path)]
    return []
