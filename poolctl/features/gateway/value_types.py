"""The value types of the keys of [gateway], [[route]] and [[stream]]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints, Tag

from poolctl.config.model.server_tables import Probe, TLSConfig
from poolctl.config.values import value_types
from poolctl.config.values.normalise import absolute_address
from poolctl.config.values.plain import BadValue, number_if_interpolated, truth_if_interpolated
from poolctl.config.values.problems import Tree, shown
from poolctl.config.values.value_types import (
    LIST,
    TABLE,
    TRUTH,
    Accepts,
    OrSingle,
    Relative,
    Short,
    Truth,
    by_form,
)
from poolctl.routing.route import POLICIES, STICKY

from . import _route_values

Policy = Literal[POLICIES]  # type: ignore[valid-type]
_STREAM_POLICIES = tuple(policy for policy in POLICIES if policy != STICKY)
StreamPolicy = Literal[_STREAM_POLICIES]  # type: ignore[valid-type]


def _readiness(value: Tree) -> Tree:
    # `health` may be written as that of a server.
    return value["readiness"] if isinstance(value, dict) and value.keys() == {"readiness"} else value


def _access_log(value: Tree) -> Tree:
    value = truth_if_interpolated(value)
    if not isinstance(value, bool) and value != "json":
        raise BadValue(f"{shown(value)} is not allowed here", 'true, false, or "json"')
    return value


_from_text = BeforeValidator(number_if_interpolated)
AccessLog = Annotated[bool | Literal["json"], BeforeValidator(_access_log)]
Host = Annotated[str, AfterValidator(_route_values.canonical_route_host)]
RoutePath = Annotated[str, AfterValidator(_route_values.canonical_route_path)]
TargetText = Annotated[str, AfterValidator(_route_values.canonical_target), Relative(absolute_address)]
StreamTargetText = Annotated[
    str, AfterValidator(_route_values.canonical_stream_target), Relative(absolute_address)
]
CookieName = Annotated[str, StringConstraints(pattern=value_types.COOKIE_PATTERN, min_length=1)]
TlsName = Annotated[str, StringConstraints(pattern=value_types.TLS_NAME_PATTERN)]
HostHeader = Annotated[str, StringConstraints(pattern=value_types.HOST_HEADER_PATTERN)]
Weight = Annotated[int, Field(ge=1, le=1000), _from_text]
Number = Annotated[int, Field(ge=0, le=1_000_000), _from_text]
Threads = Annotated[int, Field(ge=1, le=64), _from_text]  # of one thread group of HAProxy
Retries = Annotated[int, Field(ge=0, le=10), _from_text]
Rate = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False), _from_text]
Statuses = Accepts[
    Annotated[tuple[Annotated[int, Field(ge=400, le=599), _from_text], ...], Strict(False)], Sequence[int]
]
HeaderNames = Accepts[Annotated[tuple[value_types.HeaderName, ...], Strict(False)], Sequence[str]]
Methods = Accepts[Annotated[tuple[value_types.Method, ...], Strict(False)], Sequence[str]]
UrlPaths = Accepts[Annotated[tuple[value_types.UrlPath, ...], Strict(False)], Sequence[str]]
RedirectText = Annotated[str, AfterValidator(_route_values.canonical_redirect_target)]
NONE_IF_EMPTY = BeforeValidator(lambda value: None if value == "" else value)
READINESS = BeforeValidator(_readiness)
# The probe of an address outside the pool; a path stands for { http = PATH }.
OutsideProbe = Accepts[
    Annotated[
        Probe | None, Short("http", 'a path such as "/ready", or a table', value_types.UrlPath), READINESS
    ],
    Probe | str | None,
]
_Certificates = Annotated[tuple[TLSConfig, ...], Strict(False), OrSingle("at least one certificate")]
Certificates = Annotated[
    Annotated[Truth, Tag(TRUTH)] | Annotated[_Certificates, Tag(TABLE)] | Annotated[_Certificates, Tag(LIST)],
    by_form('{ cert = "FILE", key = "FILE" }, a list of such tables, true or false'),
]
