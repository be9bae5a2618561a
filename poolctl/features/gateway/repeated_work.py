"""Repeated work, such as reading counters: an exception ends one attempt, not the repetition."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

logger = logging.getLogger("poolctl.supervisor")


class RepeatedWork:
    """Logs unexpected exceptions of attempts; of several failures in a row only the first.

    `name` is the work's name in the log, such as "the counters of the gateway".
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failed = False

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Context manager: an exception in it is logged, not raised."""
        try:
            yield
        except Exception:
            if not self._failed:
                logger.exception("%s: not expected, and tried again", self._name)
            self._failed = True
        else:
            self._failed = False
