"""The view without a terminal: one frame as text, with all servers."""

from __future__ import annotations

import io
import shutil
import sys

from rich.console import Console

from poolctl.cli.render import coloured

from .board import Board
from .table import table_lines
from .totals import head_lines

_WIDTH = 120


def frame_text(board: Board, pool: str) -> str:
    """The totals and the whole table; in colours only for a terminal."""
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
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
