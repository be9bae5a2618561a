"""poolctl: a pool of HTTP servers, keyed by bind address; defined in a file, on the command line or in Python.

All names are imported on first use, so that small processes and fast commands import little.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.config import ServerConfig, TLSConfig
    from poolctl.control.pool_client import connect
    from poolctl.errors import (
        ControlError,
        PoolAddError,
        PoolError,
        PoolMonitorError,
        PoolParamError,
        PoolRestartError,
        PoolStartError,
        PoolStopError,
        PoolValidateError,
        ServerError,
    )
    from poolctl.pool.pool import Pool, PoolConfig
    from poolctl.pool.server import Monitor, PoolContext, Server
    from poolctl.selection.field_filter import Field
    from poolctl.states import State, Status

__all__ = [
    "ControlError",
    "Field",
    "Monitor",
    "Pool",
    "PoolAddError",
    "PoolConfig",
    "PoolContext",
    "PoolError",
    "PoolMonitorError",
    "PoolParamError",
    "PoolRestartError",
    "PoolStartError",
    "PoolStopError",
    "PoolValidateError",
    "Server",
    "ServerConfig",
    "ServerError",
    "State",
    "Status",
    "TLSConfig",
    "__version__",
    "connect",
]

_ERRORS = [name for name in __all__ if name.endswith("Error")]
_HOMES = {
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(["State", "Status"], "states"),
    "Field": "selection.field_filter",
    "Monitor": "pool.server",
    "Pool": "pool.pool",
    "PoolConfig": "pool.pool",
    "PoolContext": "pool.server",
    "Server": "pool.server",
    "ServerConfig": "config",
    "TLSConfig": "config",
    "connect": "control.pool_client",
}

# Not only in the metadata, because keeper and workers run where poolctl is not installed.
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
