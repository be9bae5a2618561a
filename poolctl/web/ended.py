"""Sessions that were logged out, kept in a file so that their cookies stay invalid after a restart."""

from __future__ import annotations

import contextlib
import json
import logging
import os

from poolctl.clock import Clock

logger = logging.getLogger("poolctl.web")


class Ended:
    """Identifiers of sessions, each with the time at which it would have expired, in seconds since 1970.

    They are kept in the file at `path` ("" for none), which another process may change meanwhile.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._known: dict[str, int] = {}
        self._mark: tuple[int, int] | None = None

    def __contains__(self, session: str) -> bool:
        self._read()
        return session in self._known

    def add(self, session: str, expires: int) -> None:
        """Record that this session was logged out."""
        self._read()
        now = self._clock.time()
        self._known = {each: end for each, end in self._known.items() if end > now} | {session: expires}
        try:
            self._write()
        except OSError as error:
            logger.error("a logout could not be stored, and may be undone by a restart: %s", error)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(self._path)
            mark = (status.st_ino, status.st_mtime_ns)
            if mark == self._mark:
                return
            self._mark = mark
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
            if isinstance(found, dict):
                self._known |= {str(each): end for each, end in found.items() if isinstance(end, int)}

    def _write(self) -> None:
        if not self._path:
            return
        fd = os.open(f"{self._path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(self._known, file)
        os.replace(f"{self._path}.new", self._path)
