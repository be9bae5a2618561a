"""The answer of the verb `notify`."""

from __future__ import annotations

from poolctl.control.answers import Result
from poolctl.frozen_value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class ReceiverResult(Value):
    """The outcome of a test notification to one receiver; `message` is the reason of a failure."""

    name: str
    ok: bool
    message: str


class NotifyResult(Result):
    """Of `notify`."""

    PRINTED: ClassVar[tuple[str, ...]] = ("receivers",)

    receivers: tuple[ReceiverResult, ...] | None = None
