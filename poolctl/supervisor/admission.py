"""Whether a server can be added to a pool."""

from __future__ import annotations

from collections.abc import Iterable

from poolctl.config import Finding, ServerConfig, conflicts, dependency_findings
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION


def obstacles(added: ServerConfig, there: Iterable[ServerConfig]) -> tuple[int, list[Finding]] | None:
    """Why it cannot be added to those `there`, with the exit code; None when it can."""
    together = [*there, added]
    names = [(each.name, each.address) for each in together]
    found = [finding for later, _, finding in conflicts(names) if later == len(together) - 1]
    if found:
        return CONFLICT, found
    found = [finding for server, finding in dependency_findings(together) if server is added]
    return (INVALID_CONFIGURATION, found) if found else None
