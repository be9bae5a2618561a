"""A canary: workers of a new generation next to those of the one that should serve, until it is judged."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.config import ServerConfig


@dataclass(slots=True)
class Canary:
    """`count` workers of another generation of a server, with their configuration.

    `code_since` is when it began, in monotonic seconds; `failure` is why one of its workers has ended, or did not
    start: then no other one is started.
    """

    generation: int
    count: int
    config: ServerConfig
    code_since: float
    failure: str = ""
