"""Frames: the lines that the screen shows, or that are printed without a terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from poolctl.cli.render import coloured

from .board import SORTS, ServerBoard, ServerRow
from .columns import GAP, Placed, place
from .log_pane import LogPane
from .summary_lines import head_lines

Hints = Sequence[tuple[str, str]]

_LOW = 10  # a screen of fewer lines is for the table
_FAINT = "bright_black"
_HINTS = (
    ("/", "filter"), ("l", "logs"), ("r", "restart"), ("s", "stop"), ("<>", "sort"), ("d", "drain"),
    ("+-", "workers"), ("Space", "pause"), ("↑↓", "select"),
)  # fmt: skip
_ALWAYS = (("?", "help"), ("q", "quit"))


class Notice:
    """A message in the last line instead of the hints."""

    __slots__ = ("style", "text")

    def __init__(self, text: str, style: str = "") -> None:
        self.text = text
        self.style = style


def servers_frame(
    board: ServerBoard, pool: str, size: tuple[int, int], *, notice: Notice | None, typing: bool, trouble: str
) -> list[Text]:
    """The totals, the table, and the last line. Gives the board the number of rows that there is room for."""
    width, height = size
    head = head_lines(board, pool, width)
    if trouble:
        head = [head[0], Text(f" ! {trouble}", "bold red")]
    elif height < _LOW:
        del head[1:]
    if height >= _LOW or board.filter or typing:
        head.append(_filter_line(board, typing))
    board.resize(height - len(head) - 2)
    table = table_lines(board, width)
    lines = [*head, *table]
    lines += [Text()] * (height - 1 - len(lines))
    return [*lines, _last_line(board, notice, typing, width)]


def log_frame(pane: LogPane, size: tuple[int, int]) -> list[Text]:
    """The log of a server."""
    width, height = size
    title = Text.assemble((f" {pane.name} ", "bold reverse"), "  ", (pane.path, _FAINT))
    body = pane.visible(width, height - 2) or [Text("no output yet", _FAINT)]
    body += [Text()] * (height - 2 - len(body))
    state = f"{pane.back} lines below" if pane.back else "following"
    hints = [("↑↓", "scroll"), ("End", "follow"), ("Esc", "back")]
    return [title, *body, _hinted(hints, state, width)]


def help_frame(size: tuple[int, int], start: int) -> list[Text]:
    """The explanation of the keys."""
    width, height = size
    lines = help_lines()[start : start + height - 2]
    lines += [Text()] * (height - 2 - len(lines))
    title = Text.assemble((" Keys ", "bold reverse"))
    return [title, *lines, _hinted([("↑↓", "scroll"), ("any other key", "back")], "", width)]


def _filter_line(board: ServerBoard, typing: bool) -> Text:
    if not (board.filter or typing):
        return Text()
    found = f"  {len(board.shown)} of {len(board.rows)}"
    cursor = ("_", "blink") if typing else ""
    return Text.assemble((" filter ", "bold cyan"), board.filter, cursor, (found, _FAINT))


def _last_line(board: ServerBoard, notice: Notice | None, typing: bool, width: int) -> Text:
    if notice is not None:
        return Text(f" {notice.text}", notice.style or "bold")
    if typing:
        return _hinted([("Enter", "keep the filter"), ("Esc", "show all"), ("↑↓", "select")], "", width)
    place = f"{board.position}/{len(board.shown)}" if len(board.shown) > board.height else ""
    return _hinted(_HINTS, place, width, _ALWAYS)


def _hinted(hints: Hints, at_right: str, width: int, always: Hints = ()) -> Text:
    """Keys and what they do, as many as fit; `always` are those that stand at the end in any case."""
    left = width - len(at_right) - 2 - sum(map(_hint_width, always))
    shown = []
    for hint in hints:
        left -= _hint_width(hint)
        if left < 0:
            break
        shown.append(hint)
    line = Text(" ")
    for keys, meaning in (*shown, *always):
        line.append(keys, "bold")
        line.append(f" {meaning}  ", _FAINT)
    line.append(" " * max(0, width - line.cell_len - len(at_right) - 1))
    return line.append(at_right, _FAINT)


def _hint_width(hint: tuple[str, str]) -> int:
    return len(hint[0]) + len(hint[1]) + 3


_KEYS = (
    ("Look", ""),
    ("↑ ↓  j k", "select a server; Page Up, Page Down, Home, End"),
    ("/", "filter by words in name, address, state, health, tags;"),
    ("", "Esc clears the filter"),
    ("< >  ← →", "sort by the previous or next column"),
    ("N S H R L M C U X", "sort by name, state, health, requests, latency, memory,"),
    ("", "CPU, uptime, restarts; press again to reverse;"),
    ("", "F: file order"),
    ("Enter  l", "show the log of the selected server"),
    ("Space", "pause, resume"),
    ("", ""),
    ("Act on the selected server", ""),
    ("r", "restart: the new process is ready before the old one ends"),
    ("s", "stop it (asks first), or start it"),
    ("d", "drain it (asks first), or undrain it"),
    ("+ -", "add a worker, or remove one (asks first)"),
    ("", ""),
    ("Columns", ""),
    ("REQ/S  P99", "requests per second; 99 % are answered within this time"),
    ("MEM  CPU", "of all its processes; shared memory is divided (PSS)"),
    ("BUSY  CONN", "requests being answered, connections open"),
    ("UP  RST", "uptime, and number of restarts"),
    ("", ""),
    ("q", "quit; the servers keep running"),
)
_WIDTH = 19


def help_lines() -> list[Text]:
    """The page."""
    lines = []
    for keys, meaning in _KEYS:
        if keys and not meaning:
            lines.append(Text(f" {keys}", "bold cyan"))
        else:
            lines.append(Text.assemble("  ", (keys.ljust(_WIDTH), "bold"), meaning))
    return lines


_SELECTED = "reverse"


def table_lines(board: ServerBoard, width: int, *, cursor: bool = True, all_rows: bool = False) -> list[Text]:
    """The head and the visible rows; with `cursor` the selected one stands out."""
    rows = board.shown if all_rows else board.visible
    longest = max((cell_len(row.name) for row in board.rows.all()), default=0)
    columns = place(width, longest, measured=board.rows.measured)
    selected = board.selected if cursor else None
    return [_head(columns, board), *(_line(columns, row, row is selected, width) for row in rows)]


def _head(columns: Iterable[Placed], board: ServerBoard) -> Text:
    line = Text(no_wrap=True, end="", overflow="crop")
    for column, width in columns:
        _gap(line)
        title = column.title
        sorted_by = bool(column.sort) and column.sort == board.sort and column.sort != "file"
        if sorted_by:
            title += "▾" if SORTS[board.sort] is not board.reverse else "▴"
        line.append(_fitted(title, width, column.right), "bold cyan" if sorted_by else "bold bright_black")
    return line


def _line(columns: Iterable[Placed], row: ServerRow, selected: bool, screen: int) -> Text:
    line = Text(no_wrap=True, end="", overflow="crop")
    for column, width in columns:
        _gap(line)
        text, style = column.cell(row, width)
        # Colours of their own would make patches of the selected row.
        line.append(_fitted(text, width, column.right), "" if selected else style)
    if selected:
        line.append(" " * (screen - line.cell_len))
        line.stylize(_SELECTED)
    return line


def _gap(line: Text) -> None:
    if line:
        line.append(" " * GAP)


def _fitted(text: str, width: int, right: bool) -> str:
    """The text in exactly so many cells; what does not fit ends with "…"."""
    cells = cell_len(text)
    if cells > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    room = " " * (width - cells)
    return room + text if right else text + room


_TEXT_WIDTH = 120


def frame_text(board: ServerBoard, pool: str) -> str:
    """The totals and the whole table; in colours only for a terminal."""
    width = shutil.get_terminal_size((_TEXT_WIDTH, 24)).columns
    colours = coloured(sys.stdout)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colours,
        color_system="auto" if colours else None,
        highlight=False,
    )
    lines = [*head_lines(board, pool, width), *table_lines(board, width, cursor=False, all_rows=True)]
    console.print(*lines, sep="\n", no_wrap=True, crop=True, overflow="crop")
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))
