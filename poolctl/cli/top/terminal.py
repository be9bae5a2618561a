"""The terminal while the view runs: its modes, drawing only what changed, key presses, and signals."""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Sequence
from types import FrameType

from rich.console import Console
from rich.text import Text

# The alternate screen without a cursor; mouse and wrapping stay as they are (xterm's control sequences, DECSET).
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"
# Terminals that know it show a frame when it is whole; the others ignore it.
_BEGIN_FRAME, _END_FRAME = "\x1b[?2026h", "\x1b[?2026l"
_LEAVE_SECONDS = 1.0
_ASCII = str.maketrans("●◐◑◒↻✗◌○⊘▁▂▃▄▅▆▇…▾▴µ↑↓←→", "*oooo" + "x.o-" + "_.-:=+#" + "~v^u^v<>")


class Screen:
    """`with Screen() as screen`: keys come at once and unseen, and whatever happens all is as before afterwards.

    A terminal that takes no output (Ctrl-S, a hung connection) holds up frames, but neither keys nor the end.
    """

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), _non_blocking(sys.stdout.fileno())
        self._before: list[object] | None = None
        self._drawn: list[str] = []
        self._unsent = b""
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

    def __exit__(self, *raised: object) -> None:
        self.give_back()

    def take(self) -> None:
        """Have the terminal, from the start or again. Signals of keys (Ctrl-C, Ctrl-Z) stay signals."""
        self._before = termios.tcgetattr(self._in)
        tty.setcbreak(self._in, termios.TCSANOW)
        self._write(_ENTER)
        self.resize()

    def give_back(self) -> None:
        """Put everything back. Never fails, and takes a second at most: the terminal may be gone."""
        if self._before is None:
            return
        before, self._before = self._before, None
        try:
            # Linux undoes a Ctrl-S only where tcflow(3) itself has stopped the output.
            termios.tcflow(self._out, termios.TCOOFF)
            termios.tcflow(self._out, termios.TCOON)
            self._write(_LEAVE)
            deadline = time.monotonic() + _LEAVE_SECONDS
            while (
                self._unsent and select.select([], [self._out], [], max(0.0, deadline - time.monotonic()))[1]
            ):
                self.flush()
            self._unsent = b""
            termios.tcsetattr(self._in, termios.TCSANOW, before)  # type: ignore[arg-type]
        except (OSError, termios.error):
            pass

    def resize(self) -> None:
        """Take the terminal's size as it is now, and draw all of the next frame."""
        self.width, self.height = self._measure()
        self._drawn = []

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines, unless the frame before has not been taken; lines that are shown already are not sent."""
        if self._unsent:
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

    def writers(self) -> list[int]:
        """The descriptor to wait for until it takes the rest of a frame; empty when there is none."""
        return [self._out] if self._unsent else []

    def flush(self) -> None:
        """Send more of what the terminal has not taken yet."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._out, self._unsent) :]
        except BlockingIOError:
            pass

    def read(self) -> bytes:
        """The typed bytes; empty when the terminal is gone."""
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
        self._unsent += text.encode(sys.stdout.encoding or "utf-8", "replace")
        self.flush()


def _non_blocking(fd: int) -> int:
    """The terminal, opened again: the mode of `fd` is shared with the shell. `fd` itself where that is not allowed."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return fd


_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class SignalReceived(Exception):
    """A signal says that it is over; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class TerminalSignals:
    """`with TerminalSignals() as signals`: signals are only noted, and `fileno` is readable when one has come."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._wakeup = -1

    def __enter__(self) -> TerminalSignals:
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*_ENDING, signal.SIGWINCH, signal.SIGTSTP):
            self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """The descriptor that is readable when a signal has come."""
        return self._read

    def take(self) -> set[int]:
        """The signals since the last call. Raises KeyboardInterrupt for Ctrl-C, SignalReceived for another end."""
        try:
            came = set(os.read(self._read, 4096))
        except BlockingIOError:
            return set()
        for number in _ENDING:
            if number in came:
                raise KeyboardInterrupt if number == signal.SIGINT else SignalReceived(number)
        return came

    def stop_here(self) -> None:
        """Stop as a program that does nothing about Ctrl-Z; returns when the shell lets it go on."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _noted)


def _noted(number: int, frame: object) -> None:
    """The number is in the pipe already (signal.set_wakeup_fd)."""


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


# A whole escape sequence (ECMA-48 §5.4), or one character; and what may become a sequence at the end of the input.
_KEY = re.compile(r"\x1b[\[O][ -?]*[@-~]|.", re.DOTALL)
_BEGUN = re.compile(r"\x1b(?:[\[O][ -?]*)?\Z")


class Keys:
    """Takes bytes, gives names of keys ("up", "enter") and characters; an escape sequence may come in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""

    @property
    def pending(self) -> bool:
        """Whether there is the beginning of a sequence, which after a moment is nothing but the Escape key."""
        return bool(self._begun)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete now."""
        text = self._begun + self._decoder.decode(data)
        begun = _BEGUN.search(text)
        self._begun = begun[0] if begun else ""
        return _named(_KEY.findall(text.removesuffix(self._begun)))

    def flush(self) -> list[str]:
        """The keys that are left when nothing follows: Escape, and what was typed after it."""
        text, self._begun = self._begun, ""
        return _named(text)


def _named(typed: Sequence[str]) -> list[str]:
    names = [_SEQUENCES.get(each[1:], "") if len(each) > 1 else _SINGLE.get(each, each) for each in typed]
    return [name for name in names if name.isprintable() and name]
