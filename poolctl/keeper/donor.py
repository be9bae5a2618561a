"""The supervisor that fills a new keeper: if it does not answer pings meanwhile, it gets SIGCONT, then SIGKILL."""

from __future__ import annotations

import signal
import socket

from .channel import Channel
from .identified import signal_process
from .pulse import Pulse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Donor(Channel):
    """The keeper's link to that supervisor, which is not its child: `process` is the pid and start time.

    Without `process` it is not watched: a supervisor of an older version sends none, and answers no pings.
    All times are those of one monotonic clock.
    """

    def __init__(self, sock: socket.socket, process: dict[str, Any] | None, now: float) -> None:
        super().__init__(sock)
        self._process = process if process and process["start"] is not None else None
        self._watch_from(now)

    def _watch_from(self, now: float) -> None:
        self._pulse = Pulse(now)
        # It already runs, so it does not get the long time that a starting process has for its first message.
        self._pulse.heard(now)

    @property
    def due(self) -> float | None:
        """When to `look` again."""
        return self._pulse.due if self._process else None

    def heard(self, now: float) -> None:
        """It has sent something."""
        self._pulse.heard(now)

    def look(self, now: float, *, early: bool = False) -> None:
        """Send a ping when it is time, `early` at once; send a signal when the last ping is not answered in time."""
        if self._process is None:
            return
        if self._pulse.is_silent(now):
            self._signal(signal.SIGKILL)
            self._watch_from(now)
        elif self._pulse.is_late:
            # It may have been stopped.
            self._signal(signal.SIGCONT)
        elif self._pulse.should_ask(now, early=early):
            self.tell({"event": "ping"})

    def _signal(self, number: int) -> None:
        assert self._process is not None
        signal_process(self._process["pid"], self._process["start"], number)
