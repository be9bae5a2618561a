"""The answer of the verb `notify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poolctl.control.answers import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverResult:
    """The outcome of a test notification to one receiver; `message` is the reason of a failure."""

    name: str
    ok: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyResult(Result):
    """The answer of `notify`."""

    PRINTED: ClassVar[tuple[str, ...]] = ("receivers",)

    receivers: tuple[ReceiverResult, ...] | None = None
