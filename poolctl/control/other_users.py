"""Detects pools that other users run from the same file; each user has a separate runtime directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from poolctl.errors import ControlError
from poolctl.exit_codes import CONFLICT
from poolctl.platform import process_users, processes, status_of, user_name

if TYPE_CHECKING:
    from collections.abc import Sequence


# The hint of `run` if a pool of the file is already running.
BESIDE_ANOTHER = "poolctl stop ends it; poolctl run --isolated runs another one beside it"


class OtherPool(NamedTuple):
    """Another user's supervisor of the same file."""

    uid: int
    pid: int

    def __str__(self) -> str:
        return f"user {user_name(self.uid)} (pid {self.pid})"


def running_elsewhere(first_file: str) -> OtherPool | None:
    """Another user's supervisor of this file in this PID namespace, or None."""
    uid, path = os.geteuid(), os.path.realpath(first_file)
    for pid in processes():
        if _first_file_of_supervisor(pid) != path:
            continue
        users = process_users(pid)
        if users and uid not in users and len(status_of(pid).get(b"NSpid", b"").split()) == 1:
            return OtherPool(min(users), pid)
    return None


def _first_file_of_supervisor(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")
        at = words.index("supervisor")
    except (OSError, ValueError):
        return ""
    is_ours = words[at - 1].endswith("bootstrap.py") and len(words) > at + 2
    return os.path.realpath(words[at + 2]) if is_ours else ""


def refuse_second_pool(files: Sequence[str]) -> str:
    """A note if another user runs a pool of these files, else "".

    Raises ControlError (exit code 8) if the other user is root or the file's owner and a server would conflict: any but
    one with an `auto` port, so also schedulers and queue workers. Other users cannot prevent a start.
    """
    other = running_elsewhere(files[0])
    if not other:
        return ""
    from poolctl.config import load
    from poolctl.errors import PoolError

    try:
        servers = [server for server in load(files) if not server.disabled]
    except PoolError:
        return ""  # the supervisor reports it
    is_trusted = other.uid in (0, os.stat(files[0]).st_uid)
    if is_trusted and any(not server.address.auto for server in servers):
        raise ControlError(
            f"{other} runs a pool of {files[0]} already",
            exit_code=CONFLICT,
            hint="stop that one as its user, or use another file",
        )
    return f"{other} runs a pool of {files[0]}, too"
