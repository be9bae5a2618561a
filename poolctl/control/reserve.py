"""Descriptors reserved for commands, for when all others are in use."""

from __future__ import annotations

import resource
from types import TracebackType

from poolctl.config import OPEN_FILES_RESERVE


class DescriptorReserve:
    """Lowers the soft limit of open files by `count` below the hard one, except while it is entered, by however many.

    Nothing happens where the hard limit leaves no room for it.
    """

    def __init__(self, count: int = OPEN_FILES_RESERVE) -> None:
        self._count = count
        self._users = 0
        self._set_limit()

    def __enter__(self) -> None:
        self._users += 1
        self._set_limit()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users -= 1
        self._set_limit()

    def _set_limit(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = hard if self._users else hard - self._count
        if hard > 2 * self._count and soft != wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
