"""The end of a pool: waiting until its last process has exited, and the exit status that it leaves behind."""

from __future__ import annotations

import os

LIMIT_SECONDS = 10.0
STATUS = "status.json"


def await_end(pid: int, limit_seconds: float = LIMIT_SECONDS) -> bool:
    """Whether the process exits within the limit; True for one that does not exist, and for 0."""
    if not pid:
        return True
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # a kernel or a sandbox without pidfd_open(2)
        return not os.path.exists(f"/proc/{pid}")
    import select  # not for the many commands that wait for no process

    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(limit_seconds * 1000))
    finally:
        os.close(process)


class PoolExit:
    """Why a pool has ended without a command, its exit status, and the process that exits last."""

    # Written out: a dataclass or a named tuple would cost the quickest commands a tenth of a millisecond.
    __slots__ = ("keeper_pid", "reason", "status")

    def __init__(self, status: int, reason: str, keeper_pid: int) -> None:
        self.status = status
        self.reason = reason
        self.keeper_pid = keeper_pid

    def __repr__(self) -> str:
        return f"<PoolExit {self.status}: {self.reason}>"


def write_exit(directory: str, end: PoolExit) -> None:
    """Record why the pool ends without a command, for a `poolctl run` that waits for it."""
    import json  # not for the many commands that only wait for a process, or for none

    try:
        with open(f"{directory}/{STATUS}", "w", encoding="utf-8") as file:
            json.dump({"status": end.status, "reason": end.reason, "keeper_pid": end.keeper_pid}, file)
    except OSError:
        pass  # the log has it


def read_exit(directory: str) -> PoolExit | None:
    """The exit of a pool that ended without a command; None when a command ended it, or it still runs."""
    import json

    try:
        with open(f"{directory}/{STATUS}", encoding="utf-8") as file:
            document = json.load(file)
        return PoolExit(int(document["status"]), str(document["reason"]), int(document["keeper_pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_exit(directory: str) -> None:
    """Remove the record of an earlier pool: a new one starts."""
    try:
        os.unlink(f"{directory}/{STATUS}")
    except OSError:
        pass
