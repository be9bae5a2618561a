"""What an answer of the supervisor raises in Python: the pool's own errors, by the exit code of the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poolctl.errors import ControlError, PoolError, PoolParamError, PoolValidateError, ServerError
from poolctl.exit_codes import (
    FAILED,
    INVALID_CONFIGURATION,
    NOT_AS_DESIRED,
    NOTHING_MATCHED,
    TIMED_OUT,
    USAGE,
)

MOST_EXIT_CODE = 255


def error_of(verb: str, code: int, result: Mapping[str, Any], failure: type[PoolError]) -> Exception:
    """The error of an answer whose exit code is no success; `failure` is the one of servers that failed."""
    children = [_child(each, timed_out=code == TIMED_OUT) for each in result.get("errors", ())]
    message = f"{verb} failed" if len(children) != 1 else str(children[0])
    if code in (USAGE, NOTHING_MATCHED):
        return PoolParamError(message, children)
    if code == INVALID_CONFIGURATION:
        return PoolValidateError(message, children)
    if code not in (FAILED, NOT_AS_DESIRED, TIMED_OUT):
        return ControlError(message, exit_code=code, hint=children[0].hint if children else "")
    return failure(message, children or [ServerError(message)])


def _child(each: Mapping[str, Any], *, timed_out: bool) -> ServerError:
    child = ServerError(
        each.get("message", ""),
        name=each.get("name", ""),
        bind=each.get("bind", ""),
        hint=each.get("hint", ""),
        # The command line's own codes are of no use here: the group fills in its own.
        code=each["code"] if each.get("code", 0) > MOST_EXIT_CODE else 0,
        error=each.get("error", "") if each.get("code", 0) > MOST_EXIT_CODE else "",
    )
    if timed_out:
        child.__cause__ = TimeoutError(child.message)
    return child
