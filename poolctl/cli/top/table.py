"""The table of servers as lines of text: only the rows that are on the screen are made."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from .board import Board
from .columns import GAP, Placed, place
from .rows import SORTS, Row

_SELECTED = "reverse"


def table_lines(board: Board, width: int, *, cursor: bool = True, all_rows: bool = False) -> list[Text]:
    """The head and the visible rows; with `cursor` the selected one stands out."""
    rows = board.shown if all_rows else board.visible
    longest = max((cell_len(row.name) for row in board.rows.all()), default=0)
    columns = place(width, longest, measured=board.rows.measured)
    selected = board.selected if cursor else None
    return [_head(columns, board), *(_line(columns, row, row is selected, width) for row in rows)]


def _head(columns: Iterable[Placed], board: Board) -> Text:
    line = Text(no_wrap=True, end="", overflow="crop")
    for column, width in columns:
        _gap(line)
        title = column.title
        sorted_by = bool(column.sort) and column.sort == board.sort and column.sort != "file"
        if sorted_by:
            title += "▾" if SORTS[board.sort] is not board.reverse else "▴"
        line.append(_fitted(title, width, column.right), "bold cyan" if sorted_by else "bold bright_black")
    return line


def _line(columns: Iterable[Placed], row: Row, selected: bool, screen: int) -> Text:
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
