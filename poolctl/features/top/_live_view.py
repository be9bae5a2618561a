"""The running view: handles keys, answers, the clock and signals, and updates the screen."""

from __future__ import annotations

import os
import select
import signal
from time import monotonic
from typing import Any, NamedTuple

from rich.text import Text

from poolctl.control.answers import Item, Result
from poolctl.control.client import NoSupervisor
from poolctl.control.gateway_answers import RoutesResult
from poolctl.control.statistics_answers import StatsResult
from poolctl.errors import ControlError

from ._board import Board
from ._frames import Notice, help_frame, table_frame
from ._log_pane import LogPane, log_frame
from ._pool_requests import BackgroundRequests, PoolView
from ._route_rows import RouteBoard
from ._terminal import Keys, Screen, TerminalSignals

_ESCAPE_SECONDS = 0.05
_NOTICE_SECONDS = 4.0


class Action(NamedTuple):
    """A verb for one server. `question` asks for confirmation if it stops something."""

    verb: str
    name: str
    doing: str
    done: str
    question: str = ""
    workers: int | None = None

    def body(self) -> dict[str, object]:
        """The body of the request to the supervisor."""
        workers = {} if self.workers is None else {"workers": self.workers}
        return {"selector": {"targets": [self.name]}, "options": {"wait": True, "progress": False, **workers}}


def action_of(key: str, item: Item) -> Action | None:
    """The action of a key for a server in this state; None for a key without one."""
    name, state = item.name, item.state
    if key == "r":
        return Action("restart", name, "restarting", "restarted")
    if key == "s" and state == "disabled":
        return Action("enable", name, "enabling", "enabled")
    if key == "s" and state in ("stopped", "completed", "failed"):
        return Action("start", name, "starting", "started")
    if key == "s":
        return Action("stop", name, "stopping", "stopped", f"Stop {name}?")
    if key == "d" and state == "draining":
        return Action("undrain", name, "undraining", "back in rotation")
    if key == "d":
        return Action("drain", name, "draining", "out of rotation", f"Take {name} out of rotation?")
    wanted = item.workers + {"+": 1, "-": -1}.get(key, 0)
    if key not in ("+", "-") or wanted < 1:
        return None
    workers = f"{wanted} worker{'s' if wanted > 1 else ''}"
    question = f"Scale {name} down to {workers}?" if key == "-" else ""
    return Action("scale", name, "scaling", f"has {workers}", question, wanted)


class LiveView:
    """One view of one pool, until the user leaves it or it has been updated `frames` times."""

    def __init__(self, view: PoolView, frames: int | None) -> None:
        self._view = view
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
        self._ask_at = monotonic() + view.interval_seconds
        self._waiting = False
        self._over = False

    @property
    def _board(self) -> Board[Any]:
        """The rows on the screen."""
        return self._view.servers if self._view.routes is None else self._view.routes

    def run(self, screen: Screen, signals: TerminalSignals) -> None:
        """Show the view until the user leaves it. Raises KeyboardInterrupt, and the exceptions of `signals`."""
        while not self._over:
            screen.draw(self._frame(screen))
            self._wait(screen, signals)
            came = signals.take()
            if signal.SIGWINCH in came:
                screen.resize()
            if signal.SIGTSTP in came:
                screen.give_back()
                signals.stop_here()
                screen.take()
            now = monotonic()
            if self._notice is not None and self._question is None and now >= self._notice_until:
                self._notice = None
            if now >= self._ask_at and not self._waiting and not self._paused:
                self._waiting = True
                self._asking.ask(self._view.source.read, self._updated)
                self._ask_for_routes()

    def _frame(self, screen: Screen) -> list[Text]:
        size = screen.width, screen.height
        if self._help is not None:
            return help_frame(size, self._help)
        if self._pane is not None:
            return log_frame(self._pane, size)
        trouble = self._trouble or ("paused: press Space to resume" if self._paused else "")
        return table_frame(
            self._view.servers, self._view.pool, size, notice=self._notice, typing=self._typing, trouble=trouble,
            gateway=self._view.gateway, routes=self._view.routes,
        )  # fmt: skip

    def _wait(self, screen: Screen, signals: TerminalSignals) -> None:
        """Wait for an event or the next deadline."""
        sources = [screen.fileno(), self._asking.fileno(), signals.fileno()]
        if self._pane is not None and self._pane.fileno() >= 0:
            sources.append(self._pane.fileno())
        ready, _, _ = select.select(sources, screen.writers(), [], self._timeout())
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
            self._asking.deliver()
        if self._pane is not None:
            self._pane.read()

    def _timeout(self) -> float | None:
        if self._keys.pending:
            return _ESCAPE_SECONDS
        now = monotonic()
        times = [] if self._waiting or self._paused else [self._ask_at]
        if self._notice is not None and self._question is None:
            times.append(self._notice_until)
        return max(0.0, min(times) - now) if times else None

    def _updated(self, result: StatsResult | ControlError) -> None:
        self._waiting = False
        self._ask_at = monotonic() + self._view.interval_seconds
        if isinstance(result, NoSupervisor):
            self._trouble = "no supervisor is running: these are its last figures; poolctl start"
        elif isinstance(result, ControlError):
            self._trouble = result.message
        else:
            self._trouble = ""
            self._view.take(result)
            if self._frames is not None:
                self._frames -= 1
                self._over = self._frames <= 0

    def _ask_for_routes(self) -> None:
        if (board := self._view.routes) is not None:

            def received(result: RoutesResult | ControlError) -> None:
                # The servers' own request reports why there is no answer.
                if isinstance(result, RoutesResult):
                    board.receive(result.items, monotonic())

            self._asking.ask(self._view.source.routes, received)

    def _act(self, action: Action) -> None:
        self._say(f"{action.doing} {action.name} …", "yellow", lasting=True)
        client = self._view.source.client
        self._asking.ask(
            lambda: client.ask(Result, action.verb, action.body()),
            lambda result: self._acted(action, result),
        )

    def _acted(self, action: Action, result: Result | ControlError) -> None:
        if isinstance(result, ControlError):
            self._say(f"{action.name}: {result.message}", "bold red")
            return
        if result.errors:
            message = (result.errors[0].message or "failed").splitlines()[0]
            self._say(f"{action.name}: {message}", "bold red", lasting=True)
        else:
            self._say(f"{action.name} {action.done}", "green")
        self._ask_at = monotonic()

    def _say(self, text: str, style: str = "", *, lasting: bool = False) -> None:
        self._notice = Notice(text, style)
        self._notice_until = monotonic() + (60.0 if lasting else _NOTICE_SECONDS)

    def _press(self, key: str, screen: Screen) -> None:
        if key == "redraw":
            screen.resize()
        elif self._question is not None:
            self._answer(key)
        elif self._help is not None:
            self._press_help(key)
        elif self._pane is not None:
            if not self._pane.press(key, screen.height - 3):
                self._pane.close()
                self._pane = None
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
        elif len(key) == 1 and key in board.keys:
            board.sort_by(board.orders[board.keys.index(key)])
            self._say(f"sorted by {board.sort}{', reversed' if board.reverse else ''}")
        elif key == " ":
            self._paused = not self._paused
        elif key == "tab":
            self._switch()
        elif self._view.routes is None and self._view.servers.selected is not None:
            self._press_row(key, self._view.servers.selected)

    def _switch(self) -> None:
        """Switch between servers and routes."""
        view = self._view
        if view.routes is None and view.gateway is None:
            self._say("the pool has no gateway")
            return
        view.routes = RouteBoard() if view.routes is None else None
        self._ask_for_routes()

    def _press_row(self, key: str, row: Item) -> None:
        if key in ("enter", "l"):
            try:
                self._pane = LogPane(row.name, self._view.source.log_path(row.name))
            except (ControlError, OSError) as error:
                self._say(f"{row.name}: {error}", "bold red")
        elif (action := action_of(key, row)) is not None:
            if action.question:
                self._question = action
                self._notice = Notice(f"{action.question}  y: yes, any other key: no", "bold yellow")
            else:
                self._act(action)

    def _move(self, key: str) -> bool:
        """Move the selection if the key does so; returns whether it does."""
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
        """Close everything the view has open."""
        if self._pane is not None:
            self._pane.close()
        os.close(self._asking.fileno())
