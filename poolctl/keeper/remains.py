"""What is wanted of the pool, where it outlives keeper and supervisor: a file beside the pool's socket.

It is there as long as the pool is, and left behind only by a pool that was killed. Standard library only.
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


def keep(directory: str, content: bytes) -> None:
    """Leave the content, a JSON object, in the place of what was left before. Raises OSError."""
    path = os.path.join(directory, _NAME)
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(b'{"life": %s, "left": %s}' % (json.dumps(machine_life()).encode(), content))
    # Whoever reads it meanwhile, or after we are killed, finds the whole of the one or of the other.
    os.replace(f"{path}.new", path)


def left(directory: str) -> dict[str, Any]:
    """What a pool that was killed has left; nothing if the machine, or the container, was started anew since then."""
    try:
        with open(os.path.join(directory, _NAME), "rb") as file:
            found = json.load(file)
        known = found["life"] == machine_life() and found["life"][0] and isinstance(found["left"], dict)
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return found["left"] if known else {}


def forget(directory: str) -> None:
    """Leave nothing."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, _NAME))
