"""The log of a server on the screen: its last and new lines, with search and a level filter."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from rich.cells import chop_cells
from rich.text import Text

from poolctl.cli.log_rendering import record_lines
from poolctl.cli.render import printable
from poolctl.logs.line_filter import LineFilter, canonical_level, level_place, without_control
from poolctl.logs.log_line import LogLine, clock_time, parse_record
from poolctl.logs.log_tail import Follower

from ._frames import FAINT, hinted

_KEPT_LINES = 2000
_STYLES = {
    "error": "red", "critical": "bold red", "warning": "yellow", "debug": "bright_black", "trace": "bright_black",
}  # fmt: skip
# Minimum levels that a key cycles through; "" shows all lines.
_LEVELS = ("", "info", "warning", "error")
_FOUND = "black on yellow"


class LogPane:
    """The last and new lines of a file. `back` is the number of lines scrolled up.

    `least` is the minimum level of the shown lines; `words` is the search text.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.back = 0
        self.least = ""
        self.words = ""
        self.typing = False
        self._follower = Follower({name: path}, lines=_KEPT_LINES)
        self._kept: deque[LogLine] = deque(maxlen=_KEPT_LINES)
        self._wanted = LineFilter()
        self._lines: deque[Text] = deque(maxlen=_KEPT_LINES)
        self._take(self._follower.first)

    def __repr__(self) -> str:
        return f"<LogPane {self.path}, {len(self._lines)} lines>"

    def fileno(self) -> int:
        """A descriptor that is readable when there may be new lines; -1: poll periodically."""
        return self._follower.fileno()

    def read(self) -> bool:
        """Read new lines; returns whether there were any."""
        return self._take(self._follower.read()) > 0

    def close(self) -> None:
        self._follower.close()

    def press(self, key: str, page: int) -> bool:
        """Handle a key; returns False if it leaves the log. `page` is the number of lines on the screen."""
        if self.typing:
            self._type(key)
            return True
        steps = {"up": 1, "k": 1, "down": -1, "j": -1, "page up": page, "page down": -page, " ": -page}
        if key in steps:
            self.scroll(steps[key])
        elif key in ("home", "g"):
            self.scroll(_KEPT_LINES)
        elif key in ("end", "G"):
            self.scroll(-self.back)
        elif key == "/":
            self.typing, self.words = True, ""
        elif key in ("n", "N"):
            self.find(1 if key == "n" else -1)
        elif key == "L":
            self.show_level(_LEVELS[(_LEVELS.index(self.least) + 1) % len(_LEVELS)])
        elif key == "escape" and self.words:
            self.words = ""
        else:
            return key not in ("escape", "q", "l", "enter", "left", "backspace")
        return True

    def scroll(self, lines: int) -> None:
        """Scroll up by `lines`, or down if negative; at the end new lines are followed."""
        self.back = max(0, min(self.back + lines, len(self._lines) - 1))

    def show_level(self, least: str) -> None:
        """Show lines of at least this level ("": all), from the end."""
        self.least, self.back = least, 0
        self._wanted = LineFilter(least=least)
        self._lines.clear()
        self._show(self._kept)

    def find(self, step: int, *, here: bool = False) -> None:
        """Scroll up to the next match, or down if `step` is negative; with `here` including the last shown line."""
        lines = list(self._lines)
        at = len(lines) - 1 - self.back - (0 if here else step)
        while 0 <= at < len(lines):
            if self._matches(lines[at]):
                self.back = len(lines) - 1 - at
                return
            at -= step

    @property
    def found(self) -> int:
        """The number of lines that contain the words."""
        return sum(self._matches(line) for line in self._lines) if self.words else 0

    def visible(self, width: int, height: int) -> list[Text]:
        """The lines for a screen of this size; long lines are wrapped."""
        found: list[Text] = []
        for line in list(self._lines)[: len(self._lines) - self.back][::-1]:
            if self.words:
                line = line.copy()
                line.highlight_regex(f"(?i){re.escape(self.words)}", _FOUND)
            found += _broken(line, width)[::-1]
            if len(found) >= height:
                break
        return found[:height][::-1]

    def _type(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.typing = False
            self.words = self.words if key == "enter" else ""
        elif key == "backspace":
            self.words = self.words[:-1]
        elif key == "clear":
            self.words = ""
        elif len(key) == 1:
            self.words += key
        if self.words:
            self.find(1, here=True)

    def _matches(self, line: Text) -> bool:
        return bool(self.words) and self.words.lower() in line.plain.lower()

    def _take(self, lines: list[LogLine]) -> int:
        self._kept.extend(lines)
        return self._show(lines)

    def _show(self, lines: Iterable[LogLine]) -> int:
        made = [text for line in self._wanted.forwards(lines) for text in _texts(line)]
        self._lines.extend(made)
        if self.back:  # scrolled lines stay in place
            self.scroll(len(made))
        return len(made)


def _texts(line: LogLine) -> list[Text]:
    time = clock_time(line.time, with_millis=False) if line.time else ""
    record = parse_record(line.text)
    if record is None:
        text = printable(without_control(line.text.expandtabs(4)))
        level, begin, end = level_place(text)
        shown = Text(text)
        shown.stylize(_STYLES.get(level, ""), begin, end)
        return [Text.assemble((f"{time} ", FAINT), shown)]
    style = _STYLES.get(canonical_level(record.level), "")
    return [Text.assemble((f"{time} ", FAINT), (part, style)) for part in record_lines(record)]


def _broken(line: Text, width: int) -> list[Text]:
    if line.cell_len <= width:
        return [line]
    at, offsets = 0, []
    for piece in chop_cells(line.plain, width)[:-1]:
        at += len(piece)
        offsets.append(at)
    return list(line.divide(offsets))


_HINTS = (("/", "search"), ("L", "level"), ("↑↓", "scroll"), ("End", "follow"), ("Esc", "back"))
_HINTS_OF_SEARCH = (
    ("n", "older"),
    ("N", "newer"),
    ("/", "search"),
    ("L", "level"),
    ("Esc", "end the search"),
)


def log_frame(pane: LogPane, size: tuple[int, int]) -> list[Text]:
    width, height = size
    title = Text.assemble((f" {pane.name} ", "bold reverse"), "  ", (pane.path, FAINT))
    nothing = f"no lines of level {pane.least} or above" if pane.least else "no output yet"
    body = pane.visible(width, height - 2) or [Text(nothing, FAINT)]
    body += [Text()] * (height - 2 - len(body))
    if pane.typing:
        found = f"  {pane.found} found" if pane.words else ""
        return [
            title,
            *body,
            Text.assemble((" search ", "bold cyan"), pane.words, ("_", "blink"), (found, FAINT)),
        ]
    parts = [
        f"{pane.least} and above" if pane.least else "",
        f"{pane.found} found" if pane.words else "",
        f"{pane.back} {'line' if pane.back == 1 else 'lines'} below" if pane.back else "following",
    ]
    state = ", ".join(part for part in parts if part)
    return [title, *body, hinted(_HINTS_OF_SEARCH if pane.words else _HINTS, state, width)]
