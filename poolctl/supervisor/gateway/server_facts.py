"""What the gateway's process has to know of a routed server, as the core has it."""

from __future__ import annotations

from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.core.sleep_windows import asleep_until
from poolctl.gateway.endpoint import ServerFacts
from poolctl.states import State
from poolctl.worker import tally


def facts_of(core: Core, entry: Entry) -> ServerFacts:
    """Whether and where the server can be reached at this moment."""
    config, state = entry.config, entry.state
    endpoints = core.endpoints(config)
    if entry.armed is not None:
        # Also while its last worker is still draining: a connection wakes it.
        state = State.SLEEPING.value
    elif state == State.STARTING.value and not endpoints:
        # Its address is not open yet: a connection would be refused.
        state = State.STOPPED.value
    return ServerFacts(
        name=entry.name,
        bind=endpoints[0] if endpoints else config.key,
        tls=bool(config.tls),
        state=state,
        ready=entry.ready and not entry.out,
        health=str(entry.health),
        asleep_until=asleep_until(entry),
    )


def connections_of(core: Core, entry: Entry) -> int:
    """How many connections its workers have, by their own count."""
    counters = core.runner.capabilities.counters
    if counters is None:
        return 0
    placements = [each.placement for each in entry.workers.values()]
    pages = [counters.counts(each) for each in placements if each is not None]
    return sum(page[tally.OPEN_CONNECTIONS] for page in pages if page is not None)
