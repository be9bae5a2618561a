"""What the view asks of the supervisor: the figures, actions on servers; in the background, so that it never waits."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from poolctl.cli.log_lines import log_paths
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.remote import start_unsignalled
from poolctl.control.answers import ShowResult
from poolctl.control.client import Client
from poolctl.errors import ControlError

Result = dict[str, Any]


class StatsSource:
    """The servers' states and statistics."""

    def __init__(self, ref: PoolRef, selector: Mapping[str, Any]) -> None:
        self.client = Client(ref.socket)
        self._ref = ref
        self._selector = selector

    def read(self) -> Result:
        """The newest result. Raises ControlError."""
        return self.client.call("stats", {"selector": dict(self._selector), "options": {}})

    def log_path(self, name: str) -> str:
        """The path of the server's log. Raises ControlError."""
        found = self.client.ask(ShowResult, "show", {"selector": {"targets": [name]}}).items
        return log_paths(found, self._ref)[name]


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


_AT_REST = ("stopped", "failed", "disabled")


class Action(NamedTuple):
    """A verb for one server. `question` is asked first where something stops by it."""

    verb: str
    name: str
    doing: str
    done: str
    question: str = ""
    workers: int | None = None

    def body(self) -> dict[str, Any]:
        """The body of the request to the supervisor."""
        options: dict[str, Any] = {"wait": True, "progress": False}
        if self.workers is not None:
            options["workers"] = self.workers
        return {"selector": {"targets": [self.name]}, "options": options}


def action_of(key: str, item: Mapping[str, Any]) -> Action | None:
    """The action of a key for a server in this state; None for a key without one."""
    name, state = str(item.get("name", "")), str(item.get("state", ""))
    if key == "r":
        return Action("restart", name, "restarting", "restarted")
    if key == "s" and state == "disabled":
        return Action("enable", name, "enabling", "enabled")
    if key == "s" and state in _AT_REST:
        return Action("start", name, "starting", "started")
    if key == "s":
        return Action("stop", name, "stopping", "stopped", f"Stop {name}?")
    if key == "d":
        if state == "draining":
            return Action("undrain", name, "undraining", "back in rotation")
        return Action("drain", name, "draining", "out of rotation", f"Take {name} out of rotation?")
    if key in ("+", "-"):
        return _scale(name, int(item.get("workers") or 0), 1 if key == "+" else -1)
    return None


def _scale(name: str, workers: int, step: int) -> Action | None:
    wanted = workers + step
    if wanted < 1:
        return None
    question = f"Scale {name} down to {wanted} worker{'s' if wanted > 1 else ''}?" if step < 0 else ""
    done = f"has {wanted} worker{'s' if wanted > 1 else ''}"
    return Action("scale", name, "scaling", done, question, wanted)
