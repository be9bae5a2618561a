"""A server as a file would have it, for a supervisor to add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from poolctl.errors import PoolParamError

if TYPE_CHECKING:
    from poolctl.config import ServerConfig


def table_of(server: Mapping[str, Any] | ServerConfig | None) -> dict[str, Any]:
    """A server as a file would have it."""
    if server is None or isinstance(server, Mapping):
        return dict(server or {})
    from poolctl.config import escaped

    if server.app is not None and not isinstance(server.app, str):
        raise PoolParamError("the app is an object of this process", hint='name it: app="module:attribute"')
    table: dict[str, Any] = escaped(server.to_dict())
    return table
