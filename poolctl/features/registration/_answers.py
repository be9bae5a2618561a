"""The answers of the verbs `register` and `unregister`."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import Result
from poolctl.routing.route_report import RegisteredServiceReport


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationChangeResult(Result):
    """The result of `register` and `unregister`: the services that were registered or removed."""

    items: tuple[RegisteredServiceReport, ...] = ()  # type: ignore[assignment]
