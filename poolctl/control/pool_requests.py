"""Requests of a PoolClient, and its errors for what a supervisor answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from poolctl import exit_codes as codes
from poolctl.control.answers import ErrorEntry
from poolctl.errors import ControlError, PoolError, PoolParamError, PoolValidateError, ServerError
from poolctl.json_form import Table, from_json
from poolctl.units import parse_duration

ANSWERED = (codes.DONE, codes.NOT_AS_DESIRED)
Selection = Mapping[str, object] | None
# Seconds, "1m30s", or a timedelta; None for no limit.
Timeout = float | str | timedelta | None


def seconds_of(argument: str, value: Timeout) -> float | None:
    """The value of this argument in seconds. Raises PoolParamError."""
    try:
        return None if value is None else parse_duration(value)
    except ValueError as wrong:
        raise PoolParamError(f"{argument}: {wrong}") from None


def request_body(targets: Sequence[str], selector: Selection, options: Table) -> Table:
    """The body of a request. Raises PoolParamError for an invalid timeout."""
    if "timeout" in options:
        options = {**options, "timeout": seconds_of("timeout", options["timeout"])}
    return {"selector": {**(selector or {}), "targets": [*targets]}, "options": options}


def checked(
    verb: str, result: Table, failure: type[PoolError], accepted: Sequence[int] = (codes.DONE,)
) -> Table:
    """The result if its exit code is accepted; else raises the error, which is a `failure` if servers failed."""
    code = result.get("exit_code", codes.DONE)
    if code in accepted:
        return result
    children = [from_json(ErrorEntry, each).to_error() for each in result.get("errors", ())]
    if code == codes.TIMED_OUT:
        for child in children:
            child.__cause__ = TimeoutError(child.message)
    message = f"{verb} failed" if len(children) != 1 else str(children[0])
    if code in (codes.USAGE, codes.NOTHING_MATCHED):
        raise PoolParamError(message, children)
    if code == codes.INVALID_CONFIGURATION:
        raise PoolValidateError(message, children)
    if code not in (codes.FAILED, codes.NOT_AS_DESIRED, codes.TIMED_OUT):
        raise ControlError(message, exit_code=code, hint=children[0].hint if children else "")
    raise failure(message, children or [ServerError(message)])
