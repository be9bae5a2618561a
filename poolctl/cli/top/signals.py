"""The signals that a view has to heed: another size, the end, and Ctrl-Z."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class Ended(Exception):
    """A signal says that it is over; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """`with Signals() as signals`: signals are only noted, and `fileno` is readable when one has come."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before: dict[int, object] = {}
        self._wakeup = -1
        self._noted: set[int] = set()

    def __enter__(self) -> Signals:
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

    def end_if_told(self) -> None:
        """Raise Ended when a signal said so, KeyboardInterrupt for Ctrl-C."""
        for number in _ENDING:
            if self._take(number):
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                raise Ended(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.add(number)

    def _take(self, number: int) -> bool:
        found = number in self._noted
        self._noted.discard(number)
        return found
