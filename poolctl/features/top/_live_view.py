"""The running view: handles keys, answers, timers and signals, and updates the screen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from rich.text import Text

from poolctl.cli.log_rendering import log_paths
from poolctl.control.answers import Item, Result
from poolctl.control.client import SILENCE_SECONDS, AsyncClient, NoSupervisor
from poolctl.control.gateway_answers import RoutesResult
from poolctl.control.server_answers import ShowResult, StatsResult
from poolctl.errors import ControlError

from ._boards import Board, PoolView, RouteBoard
from ._frames import LogPane, Notice, help_frame, log_frame, table_frame
from ._terminal import KeyDecoder, Pasted, Screen

Answer = TypeVar("Answer")

_NOTICE_SECONDS = 4.0
_LONG_NOTICE_SECONDS = 60.0
# Long, because the supervisor enforces the limits of an action.
_ACTION_SECONDS = 3600.0
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class ServerAction(NamedTuple):
    """A command for one server. Notices show `doing` and `done`; a `question`, if any, has to be confirmed first."""

    verb: str
    name: str
    doing: str
    done: str
    question: str = ""
    workers: int | None = None

    def body(self) -> dict[str, object]:
        workers = {} if self.workers is None else {"workers": self.workers}
        return {"selector": {"targets": [self.name]}, "options": {"wait": True, "progress": False, **workers}}


def action_of(key: str, item: Item) -> ServerAction | None:
    """Return what a key does to the server `item`, which may depend on the server's state; None if it does nothing."""
    name, state = item.name, item.state
    if key == "r":
        return ServerAction("restart", name, "restarting", "restarted")
    if key == "s" and state == "disabled":
        return ServerAction("enable", name, "enabling", "enabled")
    if key == "s" and state in ("stopped", "completed", "failed"):
        return ServerAction("start", name, "starting", "started")
    if key == "s":
        return ServerAction("stop", name, "stopping", "stopped", f"Stop {name}?")
    if key == "d" and state == "draining":
        return ServerAction("undrain", name, "undraining", "back in rotation")
    if key == "d":
        return ServerAction("drain", name, "draining", "out of rotation", f"Take {name} out of rotation?")
    workers_wanted = item.workers + {"+": 1, "-": -1}.get(key, 0)
    if key not in ("+", "-") or workers_wanted < 1:
        return None
    workers = f"{workers_wanted} worker{'s' if workers_wanted > 1 else ''}"
    question = f"Scale {name} down to {workers}?" if key == "-" else ""
    return ServerAction("scale", name, "scaling", f"has {workers}", question, workers_wanted)


class NoticeLine:
    """The notice in place of the key hints, if there is one; `changed` is called when it changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.notice: Notice | None = None
        self._changed = changed
        self._end: asyncio.TimerHandle | None = None

    def show(self, text: str, style: str = "", seconds: float | None = _NOTICE_SECONDS) -> None:
        """Show this text for a time, or, if `seconds` is None, until the next call."""
        self.clear()
        self.notice = Notice(text, style)
        if seconds is not None:
            self._end = asyncio.get_running_loop().call_later(seconds, self.clear)

    def clear(self) -> None:
        """Show the key hints again."""
        if self._end is not None:
            self._end.cancel()
        self.notice = None
        self._changed()


class LiveView:
    """One view of one pool, until the user leaves it."""

    def __init__(self, view: PoolView) -> None:
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._keys = KeyDecoder()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._pane: LogPane | None = None
        self._help: int | None = None
        self._typing = False
        self._paused = False
        self._question: ServerAction | None = None
        self._problem = ""
        self._redraw = asyncio.Event()  # set when the screen must be redrawn
        self._notices = NoticeLine(self._redraw.set)
        self._update_now = asyncio.Event()  # set to request an update before the interval ends
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ended = False
        self._ended_by = 0

    @property
    def _board(self) -> Board[Any]:
        return self._view.servers if self._view.routes is None else self._view.routes

    async def run(self) -> int:
        """Show the view until the user leaves it; returns the number of the signal that ended it, else 0."""
        for number in _ENDING_SIGNALS:
            self._loop.add_signal_handler(number, self._end, number)
        with Screen() as screen:
            self._screen = screen
            self._loop.add_signal_handler(signal.SIGWINCH, self._resize)
            self._loop.add_signal_handler(signal.SIGTSTP, self._suspend)
            self._loop.add_reader(screen.fileno(), self._read_keys)
            self._start_task(self._keep_updated())
            while not self._is_ended:
                if self._pane is not None:
                    self._pane.read()
                screen.draw(self._frame())
                if screen.unsent:
                    self._loop.add_writer(screen.output, self._on_writable)
                await self._redraw.wait()
                self._redraw.clear()
        self._close_pane()
        return self._ended_by

    def _frame(self) -> list[Text]:
        size = self._screen.width, self._screen.height
        if self._help is not None:
            return help_frame(size, self._help)
        if self._pane is not None:
            return log_frame(self._pane, size)
        problem = self._problem or ("paused: press Space to resume" if self._paused else "")
        view = self._view
        return table_frame(
            view.servers, view.pool, size, notice=self._notices.notice, typing=self._typing, trouble=problem,
            gateway=view.gateway, routes=view.routes,
        )  # fmt: skip

    # The terminal and signals.

    def _end(self, number: int = 0) -> None:
        self._is_ended, self._ended_by = True, number
        self._redraw.set()

    def _resize(self) -> None:
        self._screen.resize()
        self._redraw.set()

    def _suspend(self) -> None:
        """Suspend the process, as Ctrl-Z does. Returns when the shell continues it."""
        self._screen.restore_terminal()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        self._loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        self._screen.set_up_terminal()
        self._redraw.set()

    def _on_writable(self) -> None:
        self._screen.flush()
        if not self._screen.unsent:
            self._loop.remove_writer(self._screen.output)
            self._redraw.set()

    def _read_keys(self) -> None:
        data = self._screen.read()
        if not data:
            self._end()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._press_all(self._keys.feed(data))
        if (seconds := self._keys.pending_seconds) is not None:
            self._flush_timer = self._loop.call_later(seconds, lambda: self._press_all(self._keys.flush()))

    def _press_all(self, keys: list[str]) -> None:
        for key in keys:
            self._press(key)
        self._redraw.set()

    # Requests to the supervisor.

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(
        self, kind: type[Answer], verb: str, body: dict[str, Any], seconds: float = SILENCE_SECONDS
    ) -> Answer:
        """Send the verb to the supervisor and return its answer, within `seconds`. Raises ControlError."""
        try:
            async with asyncio.timeout(seconds):
                return await AsyncClient(self._view.ref.socket, silence_seconds=None).ask(kind, verb, body)
        except TimeoutError:
            raise ControlError("the supervisor does not answer") from None

    async def _keep_updated(self) -> None:
        """Ask for the newest figures at each interval, and after an action."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._view.interval_seconds):
                    await self._update_now.wait()
            self._update_now.clear()
            if not self._paused:
                await asyncio.gather(self._fetch_server_stats(), self._update_routes())
            self._redraw.set()

    async def _fetch_server_stats(self) -> None:
        try:
            self._view.update(await self._ask(StatsResult, "stats", self._view.request))
        except NoSupervisor:
            self._problem = "no supervisor is running: these are its last figures; poolctl start"
        except ControlError as error:
            self._problem = error.message
        else:
            self._problem = ""

    async def _update_routes(self) -> None:
        if (board := self._view.routes) is not None:
            # The concurrent request for the servers reports why there is no answer.
            with contextlib.suppress(ControlError):
                board.receive((await self._ask(RoutesResult, "routes", {})).items, monotonic())
            self._redraw.set()

    async def _act(self, action: ServerAction) -> None:
        self._notices.show(f"{action.doing} {action.name} …", "yellow", _LONG_NOTICE_SECONDS)
        try:
            result = await self._ask(Result, action.verb, action.body(), _ACTION_SECONDS)
        except ControlError as error:
            self._notices.show(f"{action.name}: {error.message}", "bold red")
            return
        if result.errors:
            message = (result.errors[0].message or "failed").splitlines()[0]
            self._notices.show(f"{action.name}: {message}", "bold red", _LONG_NOTICE_SECONDS)
        else:
            self._notices.show(f"{action.name} {action.done}", "green")
        self._update_now.set()

    async def _open_log(self, name: str) -> None:
        try:
            answer = await self._ask(ShowResult, "show", {"selector": {"targets": [name]}})
            path = log_paths(answer.items, self._view.ref.logs_directory).get(name)
            if path is None:
                self._notices.show(f"{name}: it has been removed", "bold red")
            elif self._pane is None:
                self._pane = LogPane(name, path)
                if self._pane.fileno() >= 0:
                    self._loop.add_reader(self._pane.fileno(), self._redraw.set)
        except (ControlError, OSError) as error:
            self._notices.show(f"{name}: {error}", "bold red")
        self._redraw.set()

    def _close_pane(self) -> None:
        if self._pane is not None:
            if self._pane.fileno() >= 0:
                self._loop.remove_reader(self._pane.fileno())
            self._pane.close()
            self._pane = None

    # Keys.

    @property
    def _has_open_field(self) -> bool:
        if self._question is not None or self._help is not None:
            return False
        return self._typing if self._pane is None else self._pane.typing

    def _press(self, key: str) -> None:
        if isinstance(key, Pasted) and not self._has_open_field:
            return
        if key == "redraw":
            self._screen.resize()
        elif self._question is not None:
            action, self._question = self._question, None
            self._notices.clear()
            if key in ("y", "Y"):
                self._start_task(self._act(action))
        elif self._help is not None:
            steps = {"up": -1, "down": 1, "k": -1, "j": 1, "page down": 10, "page up": -10}
            self._help = max(0, self._help + steps[key]) if key in steps else None
        elif self._pane is not None:
            if not self._pane.press(key, self._screen.height - 3):
                self._close_pane()
        elif self._typing:
            self._press_filter(key)
        else:
            self._press_table(key)

    def _press_filter(self, key: str) -> None:
        board = self._board
        if key in ("enter", "escape"):
            self._typing = False
            board.set_filter(board.filter if key == "enter" else "")
        elif key == "backspace":
            board.set_filter(board.filter[:-1])
        elif key == "clear":
            board.set_filter("")
        elif not self._move(key) and len(key) == 1:
            board.set_filter(board.filter + key)

    def _press_table(self, key: str) -> None:
        board, view = self._board, self._view
        if self._move(key) or self._move({"j": "down", "k": "up", "g": "home", "G": "end"}.get(key, "")):
            return
        if key == "q":
            self._is_ended = True
        elif key == "/":
            self._typing = True
            self._notices.clear()
        elif key == "escape":
            board.set_filter("")
            self._notices.clear()
        elif key in ("?", "h"):
            self._help = 0
        elif key in ("<", ">", "left", "right"):
            board.sort_next(1 if key in (">", "right") else -1)
            self._notices.show(f"sorted by {board.sort}")
        elif sort := next((name for name, order in board.orders.items() if order.key == key), ""):
            board.toggle_sort(sort)
            self._notices.show(f"sorted by {board.sort}{', reversed' if board.reverse else ''}")
        elif key == " ":
            self._paused = not self._paused
            self._update_now.set()
        elif key == "tab" and view.routes is None and view.gateway is None:
            self._notices.show("the pool has no gateway")
        elif key == "tab":
            view.routes = RouteBoard() if view.routes is None else None
            self._start_task(self._update_routes())
        elif view.routes is None and view.servers.selected is not None:
            self._press_row(key, view.servers.selected)

    def _press_row(self, key: str, row: Item) -> None:
        if key in ("enter", "l"):
            self._start_task(self._open_log(row.name))
        elif (action := action_of(key, row)) is not None:
            if action.question:
                self._question = action
                self._notices.show(f"{action.question}  y: yes, any other key: no", "bold yellow", None)
            else:
                self._start_task(self._act(action))

    def _move(self, key: str) -> bool:
        """Move the selection if this key moves it; returns whether it does."""
        board = self._board
        page, count = board.height, len(board.shown)
        steps = {"up": -1, "down": 1, "page up": -page, "page down": page, "home": -count, "end": count}
        if key in steps:
            board.move(steps[key])
        return key in steps
