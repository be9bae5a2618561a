"""A file becomes a PoolConfig, or a list of problems."""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself would take the fast lane two milliseconds
if TYPE_CHECKING:
    from typing import Any

    from poolctl.config.model import ServerConfig
    from poolctl.config.pool_config import PoolConfig
    from poolctl.config.problems import Problem
    from poolctl.config.schema import json_schema
    from poolctl.config.sections import TLSConfig

__all__ = ["PoolConfig", "Problem", "ServerConfig", "TLSConfig", "json_schema"]

HOMES = {
    "PoolConfig": "pool_config",
    "Problem": "problems",
    "ServerConfig": "model",
    "TLSConfig": "sections",
    "json_schema": "schema",
}


def __getattr__(name: str) -> Any:
    # Finding the file is needed where pydantic must not be imported.
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
