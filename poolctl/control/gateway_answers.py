"""Answers of a supervisor about its gateway."""

from __future__ import annotations

from poolctl.control.answers import Result
from poolctl.routing.host_report import HostReport


class HostsResult(Result):
    """Of `hosts`, and of `host`, which changes some."""

    items: tuple[HostReport, ...] = ()  # type: ignore[assignment]
