"""Progress of a waiting command, on standard error: on a terminal after half a second; --verbose: every step."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Timer
    from types import TracebackType
    from typing import Any

    from poolctl.control.answers import ProgressLine

DELAY_SECONDS = 0.5
NAMES_SHOWN = 3
_DONE = frozenset({"running", "stopped", "failed", "disabled", "sleeping"})


class Progress:
    """Takes the supervisor's messages; shows how many servers are done and which are awaited.

    Calls come from the command's thread. rich's thread draws the line several times a second; both use
    one dictionary.
    """

    def __init__(self, verb: str, *, quiet: bool = False, verbose: bool = False) -> None:
        self.verb = verb
        self._quiet = quiet
        self._verbose = verbose and not quiet
        self.warnings: list[str] = []
        self._states: dict[str, tuple[str, bool]] = {}
        self._enabled = not quiet and not verbose and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._timer: Timer | None = None
        self._status: Any = None

    @property
    def wanted(self) -> bool:
        """Whether it is shown: otherwise the supervisor need not report every step."""
        return self._enabled or self._verbose

    def __enter__(self) -> Progress:
        if self._enabled:
            from threading import Timer

            from poolctl.cli.interrupts import start_unsignalled

            self._timer = Timer(DELAY_SECONDS, self._show)
            self._timer.daemon = True
            start_unsignalled(self._timer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()  # a display that is just being made must be made before it can be taken down
        if self._status is not None:
            self._status.stop()

    def __call__(self, line: ProgressLine) -> None:
        """What the supervisor says before its answer."""
        if line.warning is not None:
            self.warnings.append(line.warning)
        if line.notice is not None and not self._quiet and self.verb != "status":
            # At once: it may be what the command waits for. Of `status` it is a part of the answer.
            sys.stderr.write(f"waiting: {line.notice}\n")
            sys.stderr.flush()
        step = line.progress
        if step is None:
            return
        name, state, ready = step.name, step.state, step.ready
        if self._verbose and self._states.get(name) != (state, ready):
            sys.stderr.write(f"{name}: {state}{', ready' if ready else ''}\n")
            sys.stderr.flush()
        self._states[name] = (state, ready)

    def line(self) -> str:
        """One line: how many are done, which are awaited."""
        states = self._states.copy()
        waiting = [name for name, (state, _) in states.items() if state not in _DONE]
        done = len(states) - len(waiting)
        line = f"{self.verb}: {done} of {len(states)}" if states else f"{self.verb} …"
        if waiting:
            more = f" and {len(waiting) - NAMES_SHOWN} more" if len(waiting) > NAMES_SHOWN else ""
            line += f", waiting for {', '.join(waiting[:NAMES_SHOWN])}{more}"
        return line

    def _show(self) -> None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False)
        self._status = console.status(self)
        self._status.start()

    def __rich__(self) -> str:
        return self.line()
