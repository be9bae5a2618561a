"""Whether a worker would be placed today as it was: a number for what its server's configuration makes of it.

Not for what the machine or the command makes of it that starts the pool: interpreter, limits, base environment.
"""

from __future__ import annotations

import json
from binascii import crc32
from typing import Any

_KEYS = (
    "app", "app_dir", "cwd", "drain_seconds", "env", "factory", "handler_key", "handlers", "requests", "stop_seconds",
    "user", "uvicorn",
)  # fmt: skip


def spec_digest(spec: dict[str, Any]) -> int:
    """The number of a specification; that of another one is the same only if these two agree."""
    return crc32(json.dumps({key: spec[key] for key in _KEYS}, sort_keys=True).encode())
