"""Tells which processes the kernel's out-of-memory killer has killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..runner_protocol import Exit

# The files of a control group (version 2, version 1) that have a line `oom_kill NUMBER`.
_FILES = ("memory.events", "memory.oom_control")
_KILLED_STATUS = 128 + 9  # of a shell whose command was killed


def control_groups(
    controller: str, root: str = "/sys/fs/cgroup", listing: str = "/proc/self/cgroup"
) -> Iterator[str]:
    """The directories of this process's control group for the controller, and of its ancestors (cgroup v1 or v2)."""
    for line in _text(listing).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = f"{root}/{controller}" if controllers else root
        while True:
            if os.path.isdir(f"{base}{path}"):
                yield f"{base}{path}".rstrip("/")
            if path in ("/", ""):
                break
            path = os.path.dirname(path)


class MemoryKills:
    """The processes of the pool's control group that were killed because memory ran out, since this object was made."""

    def __init__(self) -> None:
        files = (f"{group}/{file}" for group in control_groups("memory") for file in _FILES)
        self._path = next((path for path in files if os.path.exists(path)), "")
        self._attributed = self._count()

    def explains(self, exit_: Exit) -> bool:
        """Whether the OOM killer ended it: it was killed, and the group counts an OOM kill not attributed yet."""
        is_kill = exit_.signal == 9 or exit_.status == _KILLED_STATUS
        if not is_kill or self._count() <= self._attributed:
            return False
        self._attributed += 1
        return True

    def _count(self) -> int:
        fields = (line.split() for line in _text(self._path).splitlines())
        return next((int(value) for name, value, *_ in fields if name == "oom_kill"), 0)


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, errors="surrogateescape") as file:
        return file.read()
    return ""
