"""Whether a running worker still matches its server's configuration: a digest of that part of its specification.

What comes from the machine, or from the command that started the pool, is left out: interpreter, limits, base
environment.
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
    """The digest of a specification; equal digests mean that the server's configuration has not changed."""
    return crc32(json.dumps({key: spec[key] for key in _KEYS}, sort_keys=True).encode())
