"""A server that the pool cannot be without: when it has failed, the pool ends with its status."""

from __future__ import annotations

from collections.abc import Callable

from poolctl.core.state import Entry
from poolctl.exit_codes import FAILED
from poolctl.runners.protocol import Exit

_SIGNALLED = 128


class Mandatory:
    """`end` is called once, with the status and the reason."""

    def __init__(self, end: Callable[[int, str], None]) -> None:
        self._end = end
        self._ended = False

    def look(self, entry: Entry) -> None:
        """See whether the entry has failed for good."""
        if entry.failed and entry.config.mandatory and not entry.removed and not self._ended:
            self._ended = True
            why = f": {entry.failure.message}" if entry.failure else ""
            self._end(status_of(entry.last_exit), f"{entry.name} has failed, and it is mandatory{why}")


def status_of(exit_: Exit | None) -> int:
    """What a shell would say of such an end; never 0, as it is a failure whatever the process said."""
    if exit_ is None:
        return FAILED
    if exit_.signal is not None:
        return _SIGNALLED + exit_.signal
    return exit_.status or FAILED
