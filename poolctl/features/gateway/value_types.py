"""The value types of the keys of [gateway], [[route]] and [[stream]]."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, Strict, StringConstraints
from pydantic_core import CoreSchema, core_schema

from poolctl.config.values import value_types
from poolctl.config.values.plain import BadValue, number_if_interpolated, truth_if_interpolated
from poolctl.config.values.problems import Tree, shown
from poolctl.routing.route import POLICIES, STICKY

from . import _route_values

Policy = Literal[POLICIES]  # type: ignore[valid-type]
_STREAM_POLICIES = tuple(each for each in POLICIES if each != STICKY)
StreamPolicy = Literal[_STREAM_POLICIES]  # type: ignore[valid-type]


class ShortForm:
    """Annotation for `tuple[table, ...]`: in a file, the value may be a list, one table, or a string.

    Elements of the list are tables or strings. A string is short for a table that has only the key `key`. `allowed`
    describes the valid values in messages.
    """

    def __init__(self, key: str, allowed: str) -> None:
        self.key = key
        self.allowed = allowed

    def __get_pydantic_core_schema__(self, source: Tree, handler: GetCoreSchemaHandler) -> CoreSchema:
        table, *_ = get_args(source)

        def tables(value: Tree) -> Tree:
            found = value if isinstance(value, (list, tuple)) else (value,)
            if not found and self.key == "to":
                raise BadValue("an empty list is not allowed here", "at least one target")
            for each in found:
                if not isinstance(each, (str, dict, table)):
                    raise BadValue(f"{shown(each)} is not allowed here", self.allowed)
            return tuple({self.key: each} if isinstance(each, str) else each for each in found)

        return core_schema.no_info_before_validator_function(tables, handler(source))


TRUTH_OR_CERTIFICATES = value_types.TruthOr(
    '{ cert = "FILE", key = "FILE" }, a list of such tables, true or false'
)
LISTENERS = ShortForm("bind", value_types.ADDRESS_ALLOWED)
TARGETS = ShortForm("to", _route_values.TARGET_ALLOWED)
STREAM_TARGETS = ShortForm("to", _route_values.STREAM_TARGET_ALLOWED)


def _expand_probe_shorthand(value: Tree) -> Tree:
    if isinstance(value, dict) and value.keys() == {"readiness"}:  # as the health of a server
        value = value["readiness"]
    return {"http": value} if isinstance(value, str) else value


def _access_log(value: Tree) -> Tree:
    value = truth_if_interpolated(value)
    if not isinstance(value, bool) and value != "json":
        raise BadValue(f"{shown(value)} is not allowed here", 'true, false, or "json"')
    return value


def _redirect(value: Tree) -> Tree:
    return {"to": value} if isinstance(value, str) else value


def _sticky(value: Tree) -> Tree:
    return ({"cookie": value} if value else None) if isinstance(value, str) else value


_from_text = BeforeValidator(number_if_interpolated)
AccessLog = Annotated[bool | Literal["json"], BeforeValidator(_access_log)]
Host = Annotated[str, AfterValidator(_route_values.canonical_route_host)]
RoutePath = Annotated[str, AfterValidator(_route_values.canonical_route_path)]
TargetText = Annotated[str, AfterValidator(_route_values.canonical_target)]
StreamTargetText = Annotated[str, AfterValidator(_route_values.canonical_stream_target)]
CookieName = Annotated[str, StringConstraints(pattern=value_types.COOKIE_PATTERN, min_length=1)]
TlsName = Annotated[str, StringConstraints(pattern=value_types.TLS_NAME_PATTERN)]
HostHeader = Annotated[str, StringConstraints(pattern=value_types.HOST_HEADER_PATTERN)]
Weight = Annotated[int, Field(ge=1, le=1000), _from_text]
Number = Annotated[int, Field(ge=0, le=1_000_000), _from_text]
Threads = Annotated[int, Field(ge=1, le=64), _from_text]  # of one thread group of HAProxy
Retries = Annotated[int, Field(ge=0, le=10), _from_text]
Rate = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False), _from_text]
Statuses = Annotated[tuple[Annotated[int, Field(ge=400, le=599), _from_text], ...], Strict(False)]
HeaderNames = Annotated[tuple[value_types.HeaderName, ...], Strict(False)]
Methods = Annotated[tuple[value_types.Method, ...], Strict(False)]
UrlPaths = Annotated[tuple[value_types.UrlPath, ...], Strict(False)]
RedirectText = Annotated[str, AfterValidator(_route_values.canonical_redirect_target)]
REDIRECT = BeforeValidator(_redirect)
STICKY_COOKIE = BeforeValidator(_sticky)
PATH_OF_PROBE = BeforeValidator(_expand_probe_shorthand)
