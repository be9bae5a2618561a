"""The value types of the keys of a registration."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from poolctl.config.values.plain import BadValue
from poolctl.config.values.problems import shortened_printable, shown
from poolctl.config.values.value_types import Duration, Word
from poolctl.features.gateway.value_types import Host, OutsideProbe, RoutePath, TargetText, Weight

__all__ = ["Duration", "Host", "OutsideProbe", "RoutePath", "ServiceName", "ServiceUrl", "Weight"]

_URL_ALLOWED = '"http://HOST:PORT", "https://HOST:PORT" or "unix:/PATH"'
_MAX_NAME_LENGTH = 200


def _url(text: str) -> str:
    if ":" not in text or text.startswith("tag:"):
        raise BadValue(f"{shortened_printable(text[:60])!r} is not a URL", _URL_ALLOWED)
    if not text.isprintable():
        raise BadValue(f"{shown(text)} holds a control character", _URL_ALLOWED)
    return text


ServiceName = Annotated[Word, StringConstraints(max_length=_MAX_NAME_LENGTH)]
ServiceUrl = Annotated[TargetText, AfterValidator(_url)]
