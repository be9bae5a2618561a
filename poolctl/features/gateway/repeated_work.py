"""Work that is done again and again, such as reading counters: an exception ends one attempt, not all further ones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

logger = logging.getLogger("poolctl.supervisor")


class RepeatedWork:
    """Logs unexpected exceptions of attempts; if several attempts in a row fail, only the first exception.

    `name` says in the log what is not done, such as "the gateway's counters".
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
