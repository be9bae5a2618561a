"""The terminal while the view runs: modes, incremental drawing, and key presses."""

from __future__ import annotations

import codecs
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

# The alternate screen without a cursor, and marks around pasted text; mouse and wrapping are unchanged (xterm's control
# sequences, DECSET).
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[2J"
_LEAVE = "\x1b[?2004l\x1b[?25h\x1b[?1049l"
# Terminals that know these sequences show a frame only once it is complete; others ignore them.
_BEGIN_FRAME, _END_FRAME = "\x1b[?2026h", "\x1b[?2026l"
_LEAVE_SECONDS = 1.0
_ASCII = str.maketrans("●◐◑◒↻✗◌○⊘▁▂▃▄▅▆▇…▾▴µ↑↓←→", "*oooo" + "x.o-" + "_.-:=+#" + "~v^u^v<>")


class Screen:
    """The terminal in full-screen mode, as a context manager: no echo, no line buffering; always restored on exit.

    If the terminal accepts no output (Ctrl-S, a hung connection), frames wait; keys and the exit still work. `unsent`
    is the unwritten rest of a frame, to be flushed once the descriptor `output` is writable.
    """

    def __init__(self) -> None:
        self._in, self.output = sys.stdin.fileno(), _reopen_non_blocking(sys.stdout.fileno())
        self._saved_modes: list[object] | None = None
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
        self._saved_modes = termios.tcgetattr(self._in)
        tty.setcbreak(self._in, termios.TCSANOW)
        self._write(_ENTER)
        self.resize()

    def restore_terminal(self) -> None:
        """Restore the terminal, which may be gone. Never fails, and takes at most a second."""
        if self._saved_modes is None:
            return
        saved_modes, self._saved_modes = self._saved_modes, None
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
            termios.tcsetattr(self._in, termios.TCSANOW, saved_modes)  # type: ignore[arg-type]
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
            clear = "" if self._drawn else "\x1b[2J"
            self._write(_BEGIN_FRAME + clear + "".join(changed) + _END_FRAME)
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


_ESCAPE = "\x1b"
_SEQUENCE_BEGINNINGS = ("\x1b[", "\x1bO")
# DCS, SOS, OSC, PM and APC begin control strings, which last until ST (ECMA-48 §5.6) or, in xterm, BEL.
_STRING_BEGINNINGS = ("\x1bP", "\x1bX", "\x1b]", "\x1b^", "\x1b_")
_STRING_ENDS = "\a\x18\x1a"  # BEL; CAN and SUB cancel any sequence
# The number of characters that follow these sequences: a function key of Linux's console, a mouse position.
_MORE_CHARACTERS = {"\x1b[[": 1, "\x1b[M": 3}
_PASTE_BEGIN, _PASTE_END = "\x1b[200~", "\x1b[201~"
_ESCAPE_SECONDS = 0.05
# Over a slow connection, the terminal's answers arrive in pieces.
_SEQUENCE_SECONDS = 2.0


class Pasted(str):
    """A character of pasted text, which is not a key."""

    __slots__ = ()


class KeyDecoder:
    """Turns bytes into names of keys ("up", "enter") and characters, typed or pasted; sequences may arrive in pieces.

    All other input is ignored: answers to queries of earlier programs, Alt with a character, unknown keys, the mouse.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""  # an unfinished sequence; of a control string only its possible end
        self._pasting = False

    @property
    def pending_seconds(self) -> float | None:
        """How long an unfinished sequence waits for more bytes until the caller calls `flush`; None without one."""
        if not self._begun or self._pasting:
            return None
        return _ESCAPE_SECONDS if self._begun == _ESCAPE else _SEQUENCE_SECONDS

    def feed(self, data: bytes) -> list[str]:
        """Add bytes; returns the keys completed by them, and pasted characters as `Pasted`."""
        return [key for char in self._decoder.decode(data) if (key := self._add(char))]

    def flush(self) -> list[str]:
        """Drop the unfinished sequence; returns the key Escape if only that was pressed."""
        begun, self._begun = self._begun, ""
        return ["escape"] if begun == _ESCAPE else []

    def _add(self, char: str) -> str:
        """Add a character; returns the key that it completes, else ""."""
        begun, self._begun = self._begun, ""
        if self._pasting:
            return self._add_pasted(begun, char)
        if begun.startswith(_STRING_BEGINNINGS):
            return self._add_to_string(begun, char)
        if char == _ESCAPE:
            self._begun = char
            return "escape" if begun == _ESCAPE else ""
        if not begun:
            return _SINGLE.get(char, char if char.isprintable() else "")
        return self._add_to_sequence(begun + char)

    def _add_to_sequence(self, sequence: str) -> str:
        if len(sequence) == 2:
            if sequence in _SEQUENCE_BEGINNINGS or sequence in _STRING_BEGINNINGS:
                self._begun = sequence
            return ""
        if " " <= sequence[-1] <= "?" or len(sequence) < 3 + _MORE_CHARACTERS.get(sequence[:3], 0):
            self._begun = sequence
        self._pasting = sequence == _PASTE_BEGIN
        return _SEQUENCES.get(sequence[1:], "")

    def _add_to_string(self, begun: str, char: str) -> str:
        if begun.endswith(_ESCAPE) and char != "\\":
            # Another sequence instead of the string's end.
            self._begun = _ESCAPE
            return self._add(char)
        if char not in _STRING_ENDS and not begun.endswith(_ESCAPE):
            self._begun = begun + char if char == _ESCAPE else begun
        return ""

    def _add_pasted(self, begun: str, char: str) -> str:
        if _PASTE_END.startswith(begun + char):
            self._pasting = begun + char != _PASTE_END
            self._begun = begun + char if self._pasting else ""
            return ""
        self._begun = char if char == _ESCAPE else ""
        return Pasted(char) if char.isprintable() else ""
