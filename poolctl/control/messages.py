"""The documents that pass over the control socket and that `-o json` prints: their shape, and what they raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from poolctl.control.answers import ErrorEntry, Item
from poolctl.errors import ControlError, PoolError, PoolParamError, PoolValidateError, ServerError
from poolctl.exit_codes import (
    FAILED,
    INVALID_CONFIGURATION,
    NOT_AS_DESIRED,
    NOTHING_MATCHED,
    TIMED_OUT,
    USAGE,
)
from poolctl.units import parse_duration

if TYPE_CHECKING:
    from poolctl.config import ServerConfig

PROTOCOL = 1
CHECK = "--check"  # asks another version of the supervisor whether it could run here
TRY = "--try"  # lets another version take over a small pool
TRIED = "POOLCTL_TRIED"  # the variable that tells the other version that this is done

_MAX_EXIT_CODE = 255

Document = dict[str, Any]
# Seconds, "1m30s", or a timedelta.
Timeout = float | str | timedelta


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
    address: str | None = None,
) -> Item:
    """One server as every command prints it; the defaults are those of a server without a supervisor."""
    disabled = config.disabled if disabled is None else disabled
    return Item(
        name=config.name,
        bind=config.key,
        expose=config.expose,
        state="disabled" if disabled and state == "stopped" else state,
        ready=ready,
        health=health,
        pids=tuple(pids),
        workers=config.workers if workers is None else workers,
        uptime_seconds=round(uptime_seconds, 3),
        restarts=restarts,
        tags=tuple(config.tags),
        address=address,
    )


def failure(kind: type[PoolError], message: str, hint: str = "") -> ErrorEntry:
    """An error of the pool as a whole, with the code and the name of its kind."""
    return ErrorEntry(code=kind.code, error=kind.error, message=message, hint=hint)


def entries(errors: PoolError) -> tuple[ErrorEntry, ...]:
    """Every error of a group."""
    return tuple(map(ErrorEntry.from_json, errors.to_list()))


def error_of(verb: str, code: int, result: Mapping[str, Any], kind: type[PoolError]) -> Exception:
    """The error of an answer whose exit code is no success; `kind` is that of servers that failed."""
    children = [_child(each, timed_out=code == TIMED_OUT) for each in result.get("errors", ())]
    message = f"{verb} failed" if len(children) != 1 else str(children[0])
    if code in (USAGE, NOTHING_MATCHED):
        return PoolParamError(message, children)
    if code == INVALID_CONFIGURATION:
        return PoolValidateError(message, children)
    if code not in (FAILED, NOT_AS_DESIRED, TIMED_OUT):
        return ControlError(message, exit_code=code, hint=children[0].hint if children else "")
    return kind(message, children or [ServerError(message)])


def _child(each: Mapping[str, Any], *, timed_out: bool) -> ServerError:
    child = ServerError(
        each.get("message", ""),
        name=each.get("name", ""),
        bind=each.get("bind", ""),
        hint=each.get("hint", ""),
        # Exit codes of the command line mean nothing here: the group fills in its own code.
        code=each["code"] if each.get("code", 0) > _MAX_EXIT_CODE else 0,
        error=each.get("error", "") if each.get("code", 0) > _MAX_EXIT_CODE else "",
    )
    if timed_out:
        child.__cause__ = TimeoutError(child.message)
    return child


def timeout_seconds(timeout: Timeout | None) -> float | None:
    """The timeout in seconds, None for none. Raises PoolParamError."""
    if timeout is None:
        return None
    try:
        return parse_duration(timeout)
    except ValueError as wrong:
        raise PoolParamError(f"timeout: {wrong}") from None


def server_table(server: Mapping[str, Any] | ServerConfig | None) -> dict[str, Any]:
    """The server's keys and values as a file would have them."""
    if server is None or isinstance(server, Mapping):
        return dict(server or {})
    from poolctl.config import escaped

    if server.app is not None and not isinstance(server.app, str):
        raise PoolParamError("the app is an object of this process", hint='name it: app="module:attribute"')
    table: dict[str, Any] = escaped(server.to_dict())
    return table
