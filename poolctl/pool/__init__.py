"""The pool classes of the Python API: Pool, Server, Monitor and PoolContext."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .context import PoolContext
    from .pool import Pool
    from .server import Monitor, Server

__all__ = ["Monitor", "Pool", "PoolContext", "Server"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import poolctl

    return getattr(poolctl, name)
