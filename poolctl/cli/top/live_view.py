"""The running view: keys, answers, the clock and signals, and what each of them changes on the screen."""

from __future__ import annotations

import os
import select

from rich.text import Text

from poolctl.clock import Clock
from poolctl.control.client import NoSupervisor
from poolctl.errors import ControlError

from .board import SORTS, ServerBoard
from .frames import Notice, help_frame, log_frame, servers_frame
from .log_pane import LogPane
from .supervisor_requests import Action, BackgroundRequests, Result, StatsSource, action_of
from .terminal import Keys, Screen, TerminalSignals

_ESCAPE_SECONDS = 0.05
_NOTICE_SECONDS = 4.0
_SORT_KEYS = dict(zip("NSHRLMCUXF", SORTS, strict=True))


class LiveView:
    """One view of one pool until it is left."""

    def __init__(
        self,
        board: ServerBoard,
        source: StatsSource,
        clock: Clock,
        *,
        pool: str,
        interval_seconds: float,
        frames: int | None = None,
    ) -> None:
        self._board = board
        self._source = source
        self._clock = clock
        self._pool = pool
        self._interval = interval_seconds
        self._frames = frames
        self._keys = Keys()
        self._asking = BackgroundRequests()
        self._pane: LogPane | None = None
        self._help: int | None = None
        self._typing = False
        self._paused = False
        self._question: Action | None = None
        self._notice: Notice | None = None
        self._notice_until = 0.0
        self._trouble = ""
        self._ask_at = clock.monotonic() + interval_seconds
        self._waiting = False
        self._over = False

    def run(self, screen: Screen, signals: TerminalSignals) -> None:
        """Show the view until it is left. Raises KeyboardInterrupt, and what `signals` say ends it."""
        while not self._over:
            screen.draw(self._frame(screen))
            self._wait(screen, signals)
            if signals.resized():
                screen.resize()
            if signals.stopped():
                screen.give_back()
                signals.stop_here()
                screen.take()
            signals.raise_if_ending()
            now = self._clock.monotonic()
            if self._notice is not None and self._question is None and now >= self._notice_until:
                self._notice = None
            if now >= self._ask_at and not self._waiting and not self._paused:
                self._waiting = True
                self._asking.ask(self._source.read, self._updated, self._failed)

    def _frame(self, screen: Screen) -> list[Text]:
        size = screen.width, screen.height
        if self._help is not None:
            return help_frame(size, self._help)
        if self._pane is not None:
            return log_frame(self._pane, size)
        trouble = self._trouble or ("paused: press Space to resume" if self._paused else "")
        return servers_frame(
            self._board, self._pool, size, notice=self._notice, typing=self._typing, trouble=trouble
        )

    def _wait(self, screen: Screen, signals: TerminalSignals) -> None:
        """Until something has happened, or it is time for something."""
        sources = [screen.fileno(), self._asking.fileno(), signals.fileno()]
        if self._pane is not None and self._pane.fileno() >= 0:
            sources.append(self._pane.fileno())
        ready, _, _ = select.select(sources, screen.writers(), [], self._timeout())
        signals.clear()
        screen.flush()
        if screen.fileno() in ready:
            data = screen.read()
            self._over = not data
            for key in self._keys.feed(data):
                self._press(key, screen)
        elif self._keys.pending:
            for key in self._keys.flush():
                self._press(key, screen)
        if self._asking.fileno() in ready:
            self._asking.answers()
        if self._pane is not None:
            self._pane.read()

    def _timeout(self) -> float | None:
        if self._keys.pending:
            return _ESCAPE_SECONDS
        now = self._clock.monotonic()
        times = [] if self._waiting or self._paused else [self._ask_at]
        if self._notice is not None and self._question is None:
            times.append(self._notice_until)
        return max(0.0, min(times) - now) if times else None

    # Answers of the supervisor.

    def _updated(self, result: Result) -> None:
        self._waiting = False
        self._trouble = ""
        self._ask_at = self._clock.monotonic() + self._interval
        self._board.update(result.get("items") or [])
        if self._frames is not None:
            self._frames -= 1
            self._over = self._frames <= 0

    def _failed(self, error: ControlError) -> None:
        self._waiting = False
        self._ask_at = self._clock.monotonic() + self._interval
        gone = isinstance(error, NoSupervisor)
        self._trouble = (
            "no supervisor is running: these are its last figures; poolctl start" if gone else error.message
        )

    def _act(self, action: Action) -> None:
        self._say(f"{action.doing} {action.name} …", "yellow", lasting=True)
        client = self._source.client
        self._asking.ask(
            lambda: client.call(action.verb, action.body()),
            lambda result: self._acted(action, result),
            lambda error: self._say(f"{action.name}: {error.message}", "bold red"),
        )

    def _acted(self, action: Action, result: Result) -> None:
        errors = result.get("errors") or []
        if errors:
            message = str(errors[0].get("message", "failed")).splitlines()[0]
            self._say(f"{action.name}: {message}", "bold red", lasting=True)
        else:
            self._say(f"{action.name} {action.done}", "green")
        self._ask_at = self._clock.monotonic()

    def _say(self, text: str, style: str = "", *, lasting: bool = False) -> None:
        self._notice = Notice(text, style)
        self._notice_until = self._clock.monotonic() + (60.0 if lasting else _NOTICE_SECONDS)

    # Keys.

    def _press(self, key: str, screen: Screen) -> None:
        if key == "redraw":
            screen.resize()
        elif self._question is not None:
            self._answer(key)
        elif self._help is not None:
            self._press_help(key)
        elif self._pane is not None:
            self._press_log(key, self._pane, screen.height - 3)
        elif self._typing:
            self._press_filter(key)
        else:
            self._press_table(key)

    def _answer(self, key: str) -> None:
        action, self._question, self._notice = self._question, None, None
        if action is not None and key in ("y", "Y"):
            self._act(action)

    def _press_help(self, key: str) -> None:
        steps = {"up": -1, "down": 1, "k": -1, "j": 1, "page down": 10, "page up": -10}
        self._help = max(0, (self._help or 0) + steps[key]) if key in steps else None

    def _press_log(self, key: str, pane: LogPane, page: int) -> None:
        steps = {"up": 1, "k": 1, "down": -1, "j": -1, "page up": page, "page down": -page, " ": -page}
        if key in steps:
            pane.scroll(steps[key])
        elif key in ("home", "g"):
            pane.scroll(1_000_000)
        elif key in ("end", "G"):
            pane.scroll(-pane.back)
        elif key in ("escape", "q", "l", "enter", "left", "backspace"):
            pane.close()
            self._pane = None

    def _press_filter(self, key: str) -> None:
        board = self._board
        if key in ("enter", "escape"):
            self._typing = False
            board.narrow(board.filter if key == "enter" else "")
        elif key == "backspace":
            board.narrow(board.filter[:-1])
        elif key == "clear":
            board.narrow("")
        elif not self._move(key) and len(key) == 1:
            board.narrow(board.filter + key)

    def _press_table(self, key: str) -> None:
        board = self._board
        if self._move(key) or self._move({"j": "down", "k": "up", "g": "home", "G": "end"}.get(key, "")):
            return
        if key == "q":
            self._over = True
        elif key == "/":
            self._typing, self._notice = True, None
        elif key == "escape":
            board.narrow("")
            self._notice = None
        elif key in ("?", "h"):
            self._help = 0
        elif key in ("<", ">", "left", "right"):
            board.sort_next(1 if key in (">", "right") else -1)
            self._say(f"sorted by {board.sort}")
        elif key in _SORT_KEYS:
            board.sort_by(_SORT_KEYS[key])
            self._say(f"sorted by {board.sort}{', reversed' if board.reverse else ''}")
        elif key == " ":
            self._paused = not self._paused
        elif board.selected is not None:
            self._press_row(key, board.selected.name)

    def _press_row(self, key: str, name: str) -> None:
        row = self._board.selected
        if key in ("enter", "l"):
            try:
                self._pane = LogPane(name, self._source.log_path(name))
            except (ControlError, OSError) as error:
                self._say(f"{name}: {error}", "bold red")
        elif row is not None and (action := action_of(key, row.item)) is not None:
            if action.question:
                self._question = action
                self._notice = Notice(f"{action.question}  y: yes, any other key: no", "bold yellow")
            else:
                self._act(action)

    def _move(self, key: str) -> bool:
        """Whether the key moves the selection; it has been moved."""
        board = self._board
        steps = {"up": -1, "down": 1, "page up": -board.height, "page down": board.height}
        if key in steps:
            board.move(steps[key])
        elif key in ("home", "end"):
            board.move_to(0 if key == "home" else -1)
        else:
            return False
        return True

    def close(self) -> None:
        """Leave what the view has open."""
        if self._pane is not None:
            self._pane.close()
        os.close(self._asking.fileno())
