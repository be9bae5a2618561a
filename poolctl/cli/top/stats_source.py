"""Requests to the supervisor in the background, so that the view never waits."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from poolctl.cli.interrupts import start_unsignalled
from poolctl.control.client import Client
from poolctl.errors import ControlError
from poolctl.exit_codes import USAGE

Result = dict[str, Any]


class StatsSource:
    """The servers' states and statistics, or only the states from a supervisor without statistics."""

    def __init__(self, client: Client, selector: Mapping[str, Any]) -> None:
        self.client = client
        self._selector = selector
        self._verb = "stats"

    def read(self) -> Result:
        """The newest result. Raises ControlError."""
        result = self._call()
        if self._verb == "stats" and result.get("exit_code") == USAGE:
            self._verb = "list"
            result = self._call()
        return result

    def _call(self) -> Result:
        return self.client.call(self._verb, {"selector": dict(self._selector), "options": {}})


class BackgroundRequests:
    """Runs questions in threads; `fileno` is readable when an answer is there for `answers`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._answered: deque[Callable[[], None]] = deque()

    def fileno(self) -> int:
        """The descriptor that is readable when there are answers."""
        return self._read

    def ask(
        self,
        question: Callable[[], Result],
        answered: Callable[[Result], None],
        failed: Callable[[ControlError], None],
    ) -> None:
        """Put the question; one of the two functions hears of it, called by `answers`."""

        def run() -> None:
            try:
                result = question()
            except ControlError as error:
                failure = error  # the name of an except clause ends with it
                self._answered.append(lambda: failed(failure))
            else:
                self._answered.append(lambda: answered(result))
            try:
                os.write(self._write, b".")
            except OSError:
                pass  # full: it is readable already; closed: the view has ended

        start_unsignalled(threading.Thread(target=run, name="asks", daemon=True))

    def answers(self) -> None:
        """Call the functions for all answers since the last call."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass
        while self._answered:
            self._answered.popleft()()
