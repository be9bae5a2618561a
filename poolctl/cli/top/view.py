"""A frame: the lines that the screen shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from .board import Board
from .help import help_lines
from .log_pane import LogPane
from .table import table_lines
from .totals import head_lines

Hints = Sequence[tuple[str, str]]

_LOW = 10  # a screen of fewer lines is for the table
_FAINT = "bright_black"
_HINTS = (
    ("/", "filter"), ("l", "logs"), ("r", "restart"), ("s", "stop"), ("<>", "sort"), ("d", "drain"),
    ("+-", "workers"), ("Space", "pause"), ("↑↓", "select"),
)  # fmt: skip
_ALWAYS = (("?", "help"), ("q", "quit"))


class Notice:
    """What the last line says instead of the hints."""

    __slots__ = ("style", "text")

    def __init__(self, text: str, style: str = "") -> None:
        self.text = text
        self.style = style


def servers_frame(
    board: Board, pool: str, size: tuple[int, int], *, notice: Notice | None, typing: bool, trouble: str
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
    body = pane.visible(width, height - 2) or [Text("it has written nothing yet", _FAINT)]
    body += [Text()] * (height - 2 - len(body))
    state = f"{pane.back} lines further down" if pane.back else "following"
    hints = [("↑↓", "scroll"), ("End", "follow"), ("Esc", "back")]
    return [title, *body, _hinted(hints, state, width)]


def help_frame(size: tuple[int, int], start: int) -> list[Text]:
    """The explanation of the keys."""
    width, height = size
    lines = help_lines()[start : start + height - 2]
    lines += [Text()] * (height - 2 - len(lines))
    title = Text.assemble((" Keys ", "bold reverse"))
    return [title, *lines, _hinted([("↑↓", "scroll"), ("any other key", "back")], "", width)]


def _filter_line(board: Board, typing: bool) -> Text:
    if not (board.filter or typing):
        return Text()
    found = f"  {len(board.shown)} of {len(board.rows)}"
    cursor = ("_", "blink") if typing else ""
    return Text.assemble((" filter ", "bold cyan"), board.filter, cursor, (found, _FAINT))


def _last_line(board: Board, notice: Notice | None, typing: bool, width: int) -> Text:
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
