"""A registered service as `poolctl register` and `poolctl routes` show it."""

from __future__ import annotations

import os
from dataclasses import dataclass

# Its probe has not succeeded yet; it gets requests; its probe fails; its time-to-live has passed.
STARTING, SERVING, FAILING, SILENT = "starting", "serving", "failing", "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationReport:
    """One service, registered as a backend of the route `name`. `state` is starting, serving, failing or silent.

    `why` is the problem of the last probe, or says that it is silent. `since` is the time of the last change of state
    (ISO 8601, UTC). `left_seconds` is the rest of its time-to-live, None without one.
    """

    name: str
    url: str
    state: str = SERVING
    why: str = ""
    since: str = ""
    weight: int = 1
    ttl_seconds: float = 0.0
    left_seconds: float | None = None
    latency_seconds: float | None = None
    probe: str = ""


def absolute_url(url: str) -> str:
    """The URL; a relative path of a Unix socket is made absolute from this process's directory."""
    scheme, _, path = url.partition(":")
    return f"unix:{os.path.abspath(path)}" if scheme.lower() == "unix" else url
