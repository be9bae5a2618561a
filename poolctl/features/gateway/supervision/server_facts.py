"""The facts about a routed server for the gateway's process, taken from the core."""

from __future__ import annotations

from poolctl.core.core import Core
from poolctl.core.decide import Phase
from poolctl.core.schedules import asleep_until
from poolctl.core.server_entry import Entry
from poolctl.states import State
from poolctl.worker import tally

from ..process.endpoint import ServerFacts

_SUFFIX = " (canary)"  # a blank is in no name of a server


def canary_name(server: str) -> str:
    """The name of the pair of the server's canary."""
    return server + _SUFFIX


def server_of(name: str) -> str:
    """The server that has this pair, or whose canary has it."""
    return name.removesuffix(_SUFFIX)


def pair_facts(entry: Entry) -> ServerFacts | None:
    """The pair of the server's canary and its address; None without them."""
    config = entry.config_apart
    if config is None:
        return None
    return ServerFacts(name=canary_name(entry.name), bind=config.key, tls=bool(config.tls))


def _share_of_canary(entry: Entry) -> float:
    """The share of requests that the server's canary gets; 0 if it cannot serve now."""
    canary = entry.desired.canary
    if canary is None or canary.failure:
        return 0.0
    workers = (each for each in entry.observed.workers.values() if each.generation == canary.generation)
    return canary.share if any(each.phase is Phase.READY and not each.ko for each in workers) else 0.0


def facts_of(core: Core, entry: Entry) -> ServerFacts:
    """Whether and where the server can be reached at this moment."""
    config, state = entry.config, entry.state
    endpoints = core.endpoints(config)
    if entry.listener.armed is not None:
        # Also while its last worker is still draining: a connection wakes it.
        state = State.SLEEPING.value
    elif state == State.STARTING.value and not endpoints:
        # Its address is not open yet: a connection would be refused.
        state = State.STOPPED.value
    share = _share_of_canary(entry)
    canary = pair_facts(entry) if share else None
    return ServerFacts(
        name=entry.name,
        bind=endpoints[0] if endpoints else config.key,
        tls=bool(config.tls),
        state=state,
        ready=entry.ready and not entry.out,
        health=str(entry.health),
        asleep_until=asleep_until(entry),
        canary="" if canary is None else canary.name,
        canary_bind="" if canary is None else canary.bind,
        canary_share=share,
    )


def connections_of(core: Core, entry: Entry) -> int:
    """The number of connections that the server's workers have, by their own count."""
    counters = core.runner.capabilities.counters
    if counters is None:
        return 0
    placements = [each.placement for each in entry.observed.workers.values()]
    pages = [counters.counts(each) for each in placements if each is not None]
    return sum(page[tally.OPEN_CONNECTIONS] for page in pages if page is not None)
