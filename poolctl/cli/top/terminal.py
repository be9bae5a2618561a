"""The terminal while the view runs: its modes, drawing only what changed, and signals."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType

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
        data = text.encode(sys.stdout.encoding or "utf-8", "replace")
        while data:
            data = data[os.write(self._out, data) :]


_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class SignalReceived(Exception):
    """A signal says that it is over; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class TerminalSignals:
    """`with Signals() as signals`: signals are only noted, and `fileno` is readable when one has come."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before: dict[int, object] = {}
        self._wakeup = -1
        self._noted: set[int] = set()

    def __enter__(self) -> TerminalSignals:
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*_ENDING, signal.SIGWINCH, signal.SIGTSTP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """The descriptor that is readable when a signal has come."""
        return self._read

    def clear(self) -> None:
        """Read what made it readable."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass

    def resized(self) -> bool:
        """Whether the terminal has another size now."""
        return self._take(signal.SIGWINCH)

    def stopped(self) -> bool:
        """Whether Ctrl-Z was pressed."""
        return self._take(signal.SIGTSTP)

    def stop_here(self) -> None:
        """Stop as a program that does nothing about Ctrl-Z; returns when the shell lets it go on."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._note)

    def raise_if_ending(self) -> None:
        """Raise Ended when a signal said so, KeyboardInterrupt for Ctrl-C."""
        for number in _ENDING:
            if self._take(number):
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                raise SignalReceived(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.add(number)

    def _take(self, number: int) -> bool:
        found = number in self._noted
        self._noted.discard(number)
        return found
