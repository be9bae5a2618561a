"""The log of a server on the screen: its last lines and those that come."""

from __future__ import annotations

import re
from collections import deque

from rich.cells import chop_cells
from rich.text import Text

from poolctl.cli.log_rendering import record_lines
from poolctl.cli.render import printable
from poolctl.logs.follow import Follower
from poolctl.logs.log_line import LogLine, parse_record

from .frames import hinted
from .table import FAINT

_KEPT_LINES = 2000
# Colours that a server writes for a terminal (ECMA-48 §5.4): here they would be noise.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LEVELS = {"ERROR": "red", "ERR": "red", "CRITICAL": "bold red", "FATAL": "bold red"}
_STYLES = {**_LEVELS, "WARN": "yellow", "WARNING": "yellow", "DEBUG": "bright_black", "TRACE": "bright_black"}


class LogPane:
    """The last lines of the file and those that come. `back` is how many lines the reader has scrolled up."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.back = 0
        self._follower = Follower({name: path}, lines=_KEPT_LINES)
        self._lines: deque[Text] = deque(maxlen=_KEPT_LINES)
        self._take(self._follower.first)

    def __repr__(self) -> str:
        return f"<LogPane {self.path}, {len(self._lines)} lines>"

    def fileno(self) -> int:
        """A descriptor that is readable when there may be more; -1: look from time to time."""
        return self._follower.fileno()

    def read(self) -> bool:
        """Whether anything came."""
        return self._take(self._follower.read()) > 0

    def close(self) -> None:
        """Follow no more."""
        self._follower.close()

    def scroll(self, lines: int) -> None:
        """Go up by so many lines, down by a negative number; 0 lines back is the end, which is followed."""
        self.back = max(0, min(self.back + lines, len(self._lines) - 1))

    def visible(self, width: int, height: int) -> list[Text]:
        """The lines that fit on a screen of this size, long lines broken."""
        found: list[Text] = []
        for line in list(self._lines)[: len(self._lines) - self.back][::-1]:
            found += _broken(line, width)[::-1]
            if len(found) >= height:
                break
        return found[:height][::-1]

    def _take(self, lines: list[LogLine]) -> int:
        made = [text for line in lines for text in _texts(line)]
        self._lines.extend(made)
        if self.back:  # what is being read stays where it is
            self.scroll(len(made))
        return len(made)


def _texts(line: LogLine) -> list[Text]:
    time = line.time[11:19]
    record = parse_record(line.text)
    if record is None:
        parts, style = [printable(_CONTROL.sub("", line.text.expandtabs(4)))], ""
    else:
        parts, style = record_lines(record), _STYLES.get(record.level, "")
    return [Text.assemble((f"{time} ", "bright_black"), (part, style)) for part in parts]


def _broken(line: Text, width: int) -> list[Text]:
    if line.cell_len <= width:
        return [line]
    at, offsets = 0, []
    for piece in chop_cells(line.plain, width)[:-1]:
        at += len(piece)
        offsets.append(at)
    return list(line.divide(offsets))


def log_frame(pane: LogPane, size: tuple[int, int]) -> list[Text]:
    """The log of a server."""
    width, height = size
    title = Text.assemble((f" {pane.name} ", "bold reverse"), "  ", (pane.path, FAINT))
    body = pane.visible(width, height - 2) or [Text("no output yet", FAINT)]
    body += [Text()] * (height - 2 - len(body))
    state = f"{pane.back} lines below" if pane.back else "following"
    hints = [("↑↓", "scroll"), ("End", "follow"), ("Esc", "back")]
    return [title, *body, hinted(hints, state, width)]
