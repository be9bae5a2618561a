"""The terminal while the view has it: its modes, and drawing only what has changed."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.text import Text

# The alternate screen without a cursor; mouse and wrapping stay as they are (xterm's control sequences, DECSET).
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"
# Terminals that know it show a frame when it is whole; the others ignore it.
_BEGIN_FRAME, _END_FRAME = "\x1b[?2026h", "\x1b[?2026l"
_ASCII = str.maketrans("●◐◑◒↻✗◌○⊘▁▂▃▄▅▆▇…▾▴µ↑↓←→", "*oooo" + "x.o-" + "_.-:=+#" + "~v^u^v<>")


class Screen:
    """`with Screen() as screen`: keys come at once and unseen, and whatever happens all is as before afterwards."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._before: list[object] | None = None
        self._drawn: list[str] = []
        self.width, self.height = self._measure()
        self._plain = "utf" not in (sys.stdout.encoding or "").lower()
        self._console = Console(
            file=sys.stdout, force_terminal=True, highlight=False, markup=False, emoji=False, soft_wrap=False
        )

    def __repr__(self) -> str:
        return f"<Screen of {self.width}x{self.height}>"

    def __enter__(self) -> Screen:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def take(self) -> None:
        """Have the terminal, from the start or again. Signals of keys (Ctrl-C, Ctrl-Z) stay signals."""
        self._before = termios.tcgetattr(self._in)
        tty.setcbreak(self._in, termios.TCSADRAIN)
        self._write(_ENTER)
        self.resize()

    def give_back(self) -> None:
        """Put everything back. Never fails: the terminal may be gone."""
        if self._before is None:
            return
        before, self._before = self._before, None
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._in, termios.TCSADRAIN, before)  # type: ignore[arg-type]
        except (OSError, termios.error):
            pass

    def resize(self) -> None:
        """Take the terminal's size as it is now, and draw all of the next frame."""
        self.width, self.height = self._measure()
        self._drawn = []

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines; those that the screen shows already are not sent again."""
        texts = self._rendered(list(lines[: self.height]))
        texts += [""] * (self.height - len(texts))
        changed = [
            f"\x1b[{at + 1};1H\x1b[0m\x1b[2K{text}"
            for at, text in enumerate(texts)
            if at >= len(self._drawn) or self._drawn[at] != text
        ]
        if changed:
            everything = "" if self._drawn else "\x1b[2J"
            self._write(_BEGIN_FRAME + everything + "".join(changed) + _END_FRAME)
        self._drawn = texts

    def read(self) -> bytes:
        """What was typed; nothing when the terminal is gone."""
        try:
            return os.read(self._in, 4096)
        except OSError:
            return b""

    def fileno(self) -> int:
        """The descriptor that is readable when something was typed."""
        return self._in

    def _rendered(self, lines: list[Text]) -> list[str]:
        self._console.size = (self.width, self.height)
        for line in lines:
            line.truncate(self.width, overflow="crop")
        with self._console.capture() as captured:
            self._console.print(*lines, sep="\n", no_wrap=True, crop=True, overflow="crop")
        text = captured.get()
        return (text.translate(_ASCII) if self._plain else text).split("\n")[: len(lines)]

    def _measure(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._out)
        except OSError:
            return 80, 24
        return max(size.columns, 20), max(size.lines, 5)

    def _write(self, text: str) -> None:
        data = text.encode(sys.stdout.encoding or "utf-8", "replace")
        while data:
            data = data[os.write(self._out, data) :]
