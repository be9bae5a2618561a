"""The end of a pool: waiting until its last process is gone, and the status that it leaves behind."""

from __future__ import annotations

import json
import os
import select
from collections import namedtuple

LIMIT_SECONDS = 10.0
STATUS = "status.json"


def await_end(pid: int, limit_seconds: float = LIMIT_SECONDS) -> bool:
    """Whether the process has ended within the limit. One that is not there has; 0 is none."""
    if not pid:
        return True
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # a kernel or a sandbox without pidfd_open(2)
        return not os.path.exists(f"/proc/{pid}")
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(limit_seconds * 1000))
    finally:
        os.close(process)


class Left(namedtuple("Left", ("status", "reason", "keeper_pid"))):
    """Why a pool has ended by itself, the status for it, and the process that ends last."""

    # Not typing's: this is on the way of the quickest commands.
    __slots__ = ()

    status: int
    reason: str
    keeper_pid: int


def leave_status(directory: str, left: Left) -> None:
    """Say why the pool ends by itself, to whoever runs it in the foreground."""
    try:
        with open(f"{directory}/{STATUS}", "w", encoding="utf-8") as file:
            json.dump(left._asdict(), file)
    except OSError:
        pass  # the log has it


def left_status(directory: str) -> Left | None:
    """What a pool has left that ended by itself; None when it was ended by somebody."""
    try:
        with open(f"{directory}/{STATUS}", encoding="utf-8") as file:
            document = json.load(file)
        return Left(int(document["status"]), str(document["reason"]), int(document["keeper_pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_status(directory: str) -> None:
    """Nothing has ended yet: a pool begins."""
    try:
        os.unlink(f"{directory}/{STATUS}")
    except OSError:
        pass
