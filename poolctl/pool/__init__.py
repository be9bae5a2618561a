"""The keyed pool of the Python API."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .pool import Pool
    from .pool_context import PoolContext
    from .server import Server
    from .server_monitor import Monitor

__all__ = ["Monitor", "Pool", "PoolContext", "Server"]

_HOMES = {
    "Monitor": "server_monitor",
    "Pool": "pool",
    "PoolContext": "pool_context",
    "Server": "server",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
