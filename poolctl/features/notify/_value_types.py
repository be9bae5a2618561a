"""The value types of the keys of [[notify]]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from poolctl.config.values.plain import BadValue, host_and_port, is_port
from poolctl.config.values.value_types import TOPIC_PATTERN, Accepts

_KINDS = Literal["lifecycle", "health", "config", "audit", "recovery", "scale", "wake", "notify", "pool"]


def _url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    host, port = host_and_port(rest) or ("", "")
    is_web = scheme.lower() in ("http", "https") and separator and host and is_port(port)
    if not is_web or not text.isprintable():
        # The address itself may be a secret, so it is not repeated.
        raise BadValue("this is not an http or https URL", '"https://HOST/PATH"')
    return text


Url = Annotated[str, AfterValidator(_url)]
Topic = Annotated[str, Field(pattern=TOPIC_PATTERN)]
Kinds = Accepts[Annotated[tuple[_KINDS, ...], Field(strict=False)], Sequence[_KINDS]]
