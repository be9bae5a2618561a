"""[pool]: what concerns the pool as a whole."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from poolctl.config.model.rules import app_findings
from poolctl.config.model.sections import Section
from poolctl.config.model.value_types import BadValue, Name

PORT_RANGE_ALLOWED = '"FIRST-LAST", ports from 1 to 65535'


def _port_range(value: Any) -> tuple[int, int]:
    if isinstance(value, tuple) and len(value) == 2:
        value = f"{value[0]}-{value[1]}"
    first, dash, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    first, last = first.strip(), last.strip()
    if not (dash and first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise BadValue(f"{str(value)[:60]!r} is not a range of ports", PORT_RANGE_ALLOWED)
    found = int(first[:20]), int(last[:20])
    if not 1 <= found[0] <= found[1] <= 65535:
        raise BadValue(f"{value[:60]!r} is not within 1-65535, the smaller first", PORT_RANGE_ALLOWED)
    return found


def _handlers(value: Any) -> Any:
    if isinstance(value, str) and app_findings(value):
        raise BadValue(f"{value[:60]!r} is not module:function", '"module:function"')
    return value


class PoolSettings(Section):
    """The table [pool]."""

    name: Name | None = Field(
        default=None, description="Names the pool; left out: derived from the path of the file."
    )
    port_range: Annotated[
        tuple[int, int],
        BeforeValidator(_port_range),
        WithJsonSchema({"type": "string", "pattern": r"^\s*\d{1,5}\s*-\s*\d{1,5}\s*$"}),
    ] = Field(default=(20000, 29999), description="The ports that `auto` chooses from.")
    handlers: Annotated[str, BeforeValidator(_handlers)] | None = Field(
        default=None,
        description='"module:function" that returns the apps by their handler_key, for servers without their own.',
    )

    def to_dict(self) -> dict[str, Any]:
        """The settings as a file would have them, unset keys left out."""
        return self.model_dump(exclude_none=True) | {"port_range": "-".join(map(str, self.port_range))}
