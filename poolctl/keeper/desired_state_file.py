"""The desired state of the servers, in a file next to the pool's socket: it outlives keeper and supervisor.

The file exists as long as the pool does; only a pool that was killed leaves it behind. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os

from ..platform import machine_life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME = "wanted.json"


def write(directory: str, content: bytes) -> None:
    """Replace the file's content by this JSON object. Raises OSError."""
    path = os.path.join(directory, _NAME)
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(b'{"life": %s, "left": %s}' % (json.dumps(machine_life()).encode(), content))
    # A reader finds the old or the new content whole, whenever this process is killed.
    os.replace(f"{path}.new", path)


def read(directory: str) -> dict[str, Any]:
    """The content that a killed pool left; empty if the machine or container has been restarted since."""
    try:
        with open(os.path.join(directory, _NAME), "rb") as file:
            found = json.load(file)
        known = found["life"] == machine_life() and found["life"][0] and isinstance(found["left"], dict)
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return found["left"] if known else {}


def remove(directory: str) -> None:
    """Remove the file if it exists."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, _NAME))
