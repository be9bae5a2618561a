"""The settings that a dashboard gets at its start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Settings(NamedTuple):
    """`key` and `name` are the pool's; `tls` holds the paths cert and key, and the password of the key.

    `ended_path` is the file of the ended sessions.
    """

    socket_path: str
    logs_directory: str
    key: str
    name: str
    token: str
    hosts: tuple[str, ...] = ()
    tls: Mapping[str, Any] | None = None
    ended_path: str = ""
