"""A canary: workers of a new generation next to those of the one that should serve, until it is judged."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.config import ServerConfig


@dataclass(slots=True)
class Canary:
    """`count` workers of another generation of a server, with their configuration.

    `code_since` is when it began, in monotonic seconds; `failure` is why one of its workers has ended, or did not
    start: then no other one is started. If it `is_apart` from the server, its workers have an address and a pair of
    their own, where a gateway sends this `share` of the server's requests. `promoted` is the configuration that the
    server gets if it is promoted. One that `is_lost` was begun by a previous supervisor.
    """

    generation: int
    count: int
    config: ServerConfig
    code_since: float
    promoted: ServerConfig
    failure: str = ""
    is_apart: bool = False
    share: float = 0.0
    is_lost: bool = False
