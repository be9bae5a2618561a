"""Standard streams whose readers may disconnect."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO


def stdout_fd() -> int:
    """Standard output as a descriptor; -1 when something else stands in for it."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return -1


class TolerantStream:
    """A text stream; what cannot be written to it is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; ignored when there is no reader."""
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Flush; ignored when there is no reader."""
        try:
            self._stream.flush()
        except OSError:
            pass
