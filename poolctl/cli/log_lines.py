"""Lines of several servers' output, each with its server's name before it."""

from __future__ import annotations

import sys

from poolctl.cli.render import coloured, paint
from poolctl.cli.terminal_text import terminal_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.logs.line import Line

_COLOURS = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")


class Prefixes:
    """Puts `name | ` before lines, all as wide as the longest name, on a terminal each in its colour.

    With `records` lines in JSON are rendered for people.
    """

    def __init__(self, names: list[str], *, times: bool = False, records: bool = False) -> None:
        width = max(map(len, names), default=0)
        self._times = times
        self._records = records
        self._colours = coloured(sys.stdout)
        self._terminal = sys.stdout.isatty()
        self._prefixes = {name: f"{name.ljust(width)} | " for name in names}
        if self._colours:
            self._prefixes = {
                name: paint(prefix, _COLOURS[at % len(_COLOURS)])
                for at, (name, prefix) in enumerate(self._prefixes.items())
            }

    def line(self, line: Line) -> str:
        """The line as it is printed, with its end."""
        when = f"{line.time} " if self._times and line.time else ""
        before = f"{self._prefixes.get(line.name, line.name + ' | ')}{when}"
        if self._records and line.text.startswith("{"):
            from poolctl.cli.records import record_lines
            from poolctl.logs.record import parse_record

            record = parse_record(line.text)
            if record is not None:
                texts = record_lines(record, colours=self._colours)
                return "".join(f"{before}{text}\n" for text in texts)
        text = terminal_text(line.text, colours=self._colours) if self._terminal else line.text
        return f"{before}{text}\n"
