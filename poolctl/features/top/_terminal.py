"""The terminal while the view runs: modes, incremental drawing, and key presses."""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

# The alternate screen without a cursor; mouse and wrapping are unchanged (xterm's control sequences, DECSET).
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"
# Terminals that know these sequences show a frame only once it is complete; others ignore them.
_BEGIN_FRAME, _END_FRAME = "\x1b[?2026h", "\x1b[?2026l"
_LEAVE_SECONDS = 1.0
_ASCII = str.maketrans("●◐◑◒↻✗◌○⊘▁▂▃▄▅▆▇…▾▴µ↑↓←→", "*oooo" + "x.o-" + "_.-:=+#" + "~v^u^v<>")


class Screen:
    """`with Screen() as screen`: keys arrive at once and without echo; on exit the terminal is always restored.

    If the terminal accepts no output (Ctrl-S, a hung connection), frames wait; keys and the exit still work. `unsent`
    is the unwritten rest of a frame, to be flushed once the descriptor `output` is writable.
    """

    def __init__(self) -> None:
        self._in, self.output = sys.stdin.fileno(), _reopen_non_blocking(sys.stdout.fileno())
        self._before: list[object] | None = None
        self._drawn: list[str] = []
        self.unsent = b""
        self.width, self.height = self._measure()
        self._plain = "utf" not in (sys.stdout.encoding or "").lower()
        self._console = Console(
            file=sys.stdout, force_terminal=True, highlight=False, markup=False, emoji=False, soft_wrap=False
        )

    def __repr__(self) -> str:
        return f"<Screen of {self.width}x{self.height}>"

    def __enter__(self) -> Screen:
        self.set_up_terminal()
        return self

    def __exit__(self, *raised: object) -> None:
        self.restore_terminal()

    def set_up_terminal(self) -> None:
        """Switch to the alternate screen without echo; may be called again. Ctrl-C and Ctrl-Z still send signals."""
        self._before = termios.tcgetattr(self._in)
        tty.setcbreak(self._in, termios.TCSANOW)
        self._write(_ENTER)
        self.resize()

    def restore_terminal(self) -> None:
        """Restore the terminal, which may be gone. Never fails, and takes at most a second."""
        if self._before is None:
            return
        before, self._before = self._before, None
        try:
            # Linux resumes output with tcflow(3) only if tcflow(3), not Ctrl-S, has stopped it.
            termios.tcflow(self.output, termios.TCOOFF)
            termios.tcflow(self.output, termios.TCOON)
            self._write(_LEAVE)
            deadline = time.monotonic() + _LEAVE_SECONDS
            while (
                self.unsent and select.select([], [self.output], [], max(0.0, deadline - time.monotonic()))[1]
            ):
                self.flush()
            self.unsent = b""
            termios.tcsetattr(self._in, termios.TCSANOW, before)  # type: ignore[arg-type]
        except (OSError, termios.error):
            pass

    def resize(self) -> None:
        """Read the terminal's current size, and redraw the next frame completely."""
        self.width, self.height = self._measure()
        self._drawn = []

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines unless the previous frame is still being sent; only changed lines are sent."""
        if self.unsent:
            return
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

    def flush(self) -> None:
        try:
            while self.unsent:
                self.unsent = self.unsent[os.write(self.output, self.unsent) :]
        except BlockingIOError:
            pass

    def read(self) -> bytes:
        """The typed bytes; empty if the terminal is gone."""
        try:
            return os.read(self._in, 4096)
        except OSError:
            return b""

    def fileno(self) -> int:
        """The descriptor that is readable after a key press."""
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
            size = os.get_terminal_size(self.output)
        except OSError:
            return 80, 24
        return max(size.columns, 20), max(size.lines, 5)

    def _write(self, text: str) -> None:
        self.unsent += text.encode(sys.stdout.encoding or "utf-8", "replace")
        self.flush()


def _reopen_non_blocking(fd: int) -> int:
    """Reopen the terminal as a non-blocking descriptor, as the shell shares `fd`; returns `fd` if this fails."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return fd


_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[H": "home", "[F": "end", "OH": "home", "OF": "end", "[1~": "home", "[4~": "end", "[7~": "home", "[8~": "end",
    "[5~": "page up", "[6~": "page down", "[3~": "delete", "[Z": "back tab",
}  # fmt: skip
_SINGLE = {
    "\x1b": "escape", "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace",
    "\x0c": "redraw", "\x15": "clear",
    "\x01": "home", "\x05": "end", "\x02": "page up", "\x06": "page down", "\x0e": "down", "\x10": "up",
}  # fmt: skip


# A complete escape sequence (ECMA-48 §5.4) or one character; and the beginning of a sequence at the end of input.
_KEY = re.compile(r"\x1b[\[O][ -?]*[@-~]|.", re.DOTALL)
_INCOMPLETE_SEQUENCE = re.compile(r"\x1b(?:[\[O][ -?]*)?\Z")


class KeyDecoder:
    """Turns bytes into names of keys ("up", "enter") and characters; an escape sequence may arrive in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""

    @property
    def pending(self) -> bool:
        """Whether the bytes end within an escape sequence; if no more arrive for a moment, the caller calls `flush`."""
        return bool(self._begun)

    def feed(self, data: bytes) -> list[str]:
        """Add bytes; returns the keys completed by them."""
        text = self._begun + self._decoder.decode(data)
        begun = _INCOMPLETE_SEQUENCE.search(text)
        self._begun = begun[0] if begun else ""
        return _key_names(_KEY.findall(text.removesuffix(self._begun)))

    def flush(self) -> list[str]:
        """Return the pieces of an unfinished escape sequence as single keys, Escape first, and forget the sequence."""
        text, self._begun = self._begun, ""
        return _key_names(text)


def _key_names(typed: Sequence[str]) -> list[str]:
    names = [_SEQUENCES.get(each[1:], "") if len(each) > 1 else _SINGLE.get(each, each) for each in typed]
    return [name for name in names if name.isprintable() and name]
