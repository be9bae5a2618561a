"""Servers, their failures and their details as documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from poolctl.config import masked
from poolctl.control.messages import Document, item
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.core.view import Phase
from poolctl.errors import PoolError, ServerError
from poolctl.runners import withheld
from poolctl.states import Status

if TYPE_CHECKING:
    from poolctl.probes.worker_probes import WorkerProbes


class Reports:
    """What is said about the entries of one core."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def items(self, entries: Iterable[Entry]) -> list[Document]:
        """The entries as every command prints them."""
        now = self._core.clock.monotonic()
        return [self._item(entry, now) for entry in entries]

    def _item(self, entry: Entry, now: float) -> Document:
        document = item(
            entry.config,
            workers=entry.size,
            disabled=entry.is_disabled,
            state=entry.state,
            ready=entry.ready,
            health=entry.health.value,
            pids=entry.pids,
            uptime_seconds=entry.uptime_seconds(now),
            restarts=entry.restarts,
        )
        if entry.config.address.kind == "fd":
            document["address"] = ", ".join(self._core.runner.endpoints(entry.config.key))
        return document


def reporter(progress: Progress, options: Document) -> Callable[[Entry], None]:
    """A function that sends a line of progress for each change that it is told of, if the client wants to know."""
    if not options.get("progress", True):
        return lambda entry: None
    seen: dict[str, tuple[str, bool]] = {}

    def told(entry: Entry) -> None:
        now = (entry.state, entry.ready)
        if seen.get(entry.name) == now:
            return
        seen[entry.name] = now
        line = {
            "name": entry.name,
            "bind": entry.config.key,
            "state": now[0],
            "ready": now[1],
            "message": entry.failure.message if entry.failure else "",
        }
        progress({"progress": line})

    return told


def disabled(entry: Entry) -> ServerError:
    """Why a server that was to be started is not."""
    return ServerError(
        "is disabled",
        name=entry.name,
        bind=entry.config.key,
        hint=f"poolctl enable {entry.name}, or remove `disabled = true` from its table",
    )


def drained(entry: Entry) -> ServerError:
    """Why a server that was to be started gets no traffic."""
    return ServerError(
        "is drained: it runs, out of rotation",
        name=entry.name,
        bind=entry.config.key,
        hint=f"poolctl undrain {entry.name}",
    )


def as_kind(kind: type[PoolError], failure: ServerError) -> Document:
    """The error with the code of the command that failed."""
    document = failure.to_dict()
    document["code"], document["error"] = kind.code, kind.error
    return document


def overrides(entry: Entry) -> Document:
    """The live changes that win over the configuration."""
    found: Document = {}
    live = entry.overrides
    if live.workers is not None:
        found["workers"] = live.workers
    if live.disabled is not None:
        found["disabled"] = live.disabled
    if live.out:
        found["drained"] = True
    if entry.added:
        found["added"] = True
    return found


def unwell(entry: Entry, complaint: str) -> ServerError:
    """What is wrong with a server that runs."""
    return ServerError(
        f"runs, and is not well{f': {complaint}' if complaint else ''}",
        name=entry.name,
        bind=entry.config.key,
        hint=f"poolctl logs {entry.name}",
    )


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _probes(probes: WorkerProbes | None) -> list[Document]:
    return [
        {
            "kind": probe.kind,
            "status": probe.status.value,
            "message": probe.message,
            "latency_seconds": probe.latency_seconds,
        }
        for probe in (probes.probes if probes is not None else ())
    ]


def details(entry: Entry, core: Core, *, reveal: bool = False) -> Document:
    """What `show` says beyond what every command prints; secrets as they are with `reveal` only."""
    config = entry.config
    endpoints = core.runner.endpoints(config.key)
    return {
        "overrides": overrides(entry),
        "endpoints": endpoints,
        "generation": entry.generation,
        "worker_list": [
            {
                "id": worker.id,
                "pid": worker.placement.pid if worker.placement else None,
                "where": worker.placement.where if worker.placement else "",
                "phase": worker.phase.value,
                "health": worker.status.value if worker.phase is Phase.READY else Status.UNKNOWN.value,
                "resting": worker.resting,
                "probes": _probes(core.health.probes(entry, worker)),
            }
            for worker in entry.workers.values()
        ],
        "complaint": core.health.complaint(entry),
        "preload_problem": entry.preload_problem,
        "certificate_expires": _iso(entry.certificate_ends),
        "failure": entry.failure.to_dict() if entry.failure else None,
        "config": config.to_dict() if reveal else masked(config.to_dict(), hidden=withheld.values()),
        "origin": config.origin,
    }
