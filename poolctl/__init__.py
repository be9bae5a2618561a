"""poolctl: a pool of HTTP servers, keyed by bind address; defined in a file, on the command line or in Python.

All names are imported on first use, so that small processes import little: keeper and acceptor not even `typing`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.config import ServerConfig, TLSConfig
    from poolctl.control.pool_client import PoolClient
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
    from poolctl.features.pytest_plugin.pools import PoolFactory, PoolUnderTest
    from poolctl.pool.context import PoolContext
    from poolctl.pool.pool import Pool, PoolConfig
    from poolctl.pool.server import Monitor, Server
    from poolctl.runners.embedded_runner import ProcessRunner
    from poolctl.runners.runner_protocol import Runner
    from poolctl.selection.field_filter import Field
    from poolctl.states import State, Status
    from poolctl.supervisor.connect import connect

__all__ = [
    "ControlError",
    "Field",
    "Monitor",
    "Pool",
    "PoolAddError",
    "PoolClient",
    "PoolConfig",
    "PoolContext",
    "PoolError",
    "PoolMonitorError",
    "PoolParamError",
    "PoolRestartError",
    "PoolStartError",
    "PoolStopError",
    "PoolValidateError",
    "ProcessRunner",
    "Runner",
    "Server",
    "ServerConfig",
    "ServerError",
    "State",
    "Status",
    "TLSConfig",
    "__version__",
    "connect",
]
__all__ += ["PoolFactory", "PoolUnderTest"]  # features.pytest_plugin

_ERRORS = [name for name in __all__ if name.endswith("Error")]
_MODULES = {
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(["State", "Status"], "states"),
    "Field": "selection.field_filter",
    "Monitor": "pool.server",
    "Pool": "pool.pool",
    "PoolClient": "control.pool_client",
    "PoolConfig": "pool.pool",
    "PoolContext": "pool.context",
    "PoolFactory": "features.pytest_plugin.pools",
    "PoolUnderTest": "features.pytest_plugin.pools",
    "ProcessRunner": "runners.embedded_runner",
    "Runner": "runners.runner_protocol",
    "Server": "pool.server",
    "ServerConfig": "config",
    "TLSConfig": "config",
    "connect": "supervisor.connect",
}

# Not only in the metadata, because keeper and workers run where poolctl is not installed.
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
