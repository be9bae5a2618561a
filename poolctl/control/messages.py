"""The documents that pass over the control socket and that `-o json` prints: one place for their shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolctl.config import ServerConfig
    from poolctl.errors import PoolError

SCHEMA = 1
PROTOCOL = 1
CHECK = "--check"  # asks another version of the supervisor whether it could run here
TRY = "--try"  # lets another version take over a small pool
TRIED = "POOLCTL_TRIED"  # the variable that tells the other version that this is done

Document = dict[str, Any]


def item(
    config: ServerConfig,
    *,
    workers: int | None = None,
    disabled: bool | None = None,
    state: str = "stopped",
    ready: bool = False,
    health: str = "unknown",
    pids: Sequence[int] = (),
    uptime_seconds: float = 0.0,
    restarts: int = 0,
) -> Document:
    """One server as every command prints it; the defaults are those of a server without a supervisor."""
    disabled = config.disabled if disabled is None else disabled
    return {
        "name": config.name,
        "bind": config.key,
        "expose": config.expose,
        "state": "disabled" if disabled and state == "stopped" else state,
        "ready": ready,
        "health": health,
        "pids": list(pids),
        "workers": config.workers if workers is None else workers,
        "uptime_seconds": round(uptime_seconds, 3),
        "restarts": restarts,
        "tags": list(config.tags),
    }


def result(
    items: Iterable[Document],
    errors: Iterable[Document] = (),
    *,
    exit_code: int = 0,
    warnings: Iterable[str] = (),
    **more: Any,
) -> Document:
    """The last line of an answer."""
    document: Document = {
        "schema": SCHEMA,
        "items": list(items),
        "errors": list(errors),
        "exit_code": exit_code,
    }
    document["warnings"] = list(warnings)
    document.update(more)
    return document


def error(code: int, name: str, message: str, hint: str = "", **where: str) -> Document:
    """An error that is no single server's, in the shape of the others."""
    return {"code": code, "error": name, "name": "", "bind": "", "message": message, "hint": hint, **where}


def failure(kind: type[PoolError], message: str, hint: str = "") -> Document:
    """An error of the pool as a whole, with the code and the name of its kind."""
    return error(kind.code, kind.error, message, hint)
