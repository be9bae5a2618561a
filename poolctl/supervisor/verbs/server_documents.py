"""Servers, their failures and their details as documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from poolctl.config import masked
from poolctl.control.answers import ErrorEntry, Item
from poolctl.control.show_answers import Details, LiveChanges, ProbeResult, WorkerDetails
from poolctl.core.core import Core
from poolctl.core.decision_input import Phase
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolError, ServerError
from poolctl.json_form import Table, to_json
from poolctl.runners import withheld_variables
from poolctl.runners.worker_spec import logged_requests
from poolctl.states import Status

if TYPE_CHECKING:
    from poolctl.probes.worker_probes import WorkerProbes


def items(core: Core, entries: Iterable[Entry]) -> tuple[Item, ...]:
    """The entries as every command prints them."""
    now = core.clock.monotonic()
    return tuple(_item(core, entry, now) for entry in entries)


def _item(core: Core, entry: Entry, now: float) -> Item:
    config = entry.config
    kept = "" if entry.rests else entry.kept
    inherited = config.address.kind == "fd"
    return Item(
        name=config.name,
        bind=config.key,
        expose=config.expose,
        state=entry.state,
        ready=entry.ready,
        health=entry.health.value,
        pids=tuple(entry.pids),
        workers=entry.size,
        uptime_seconds=round(entry.uptime_seconds(now), 3),
        restarts=entry.observed.restarts,
        tags=tuple(config.tags),
        address=", ".join(core.endpoints(config)) if inherited else None,
        kept=kept or None,
        kept_until=_iso(entry.observed.window.until) if kept else None,
        next_run_at=_iso(entry.schedule.next_run) if entry.on_schedule else None,
        last_run=_run(entry.schedule.last_run)
        if config.every is not None and entry.schedule.last_run
        else None,
    )


def details(core: Core, entry: Entry, origin: dict[str, str] | None, *, reveal: bool) -> Details:
    """The details that `show` reports, with the places of its keys; secrets are masked unless `reveal`."""
    config, live = entry.config, entry.desired.overrides
    table = config.to_dict()
    if table["http"]["access_log"] and not logged_requests(config):
        table["http"]["access_log"] = False
        origin = origin and {**origin, "http.access_log": "run --no-access-log"}
    return Details(
        **vars(_item(core, entry, core.clock.monotonic())),
        overrides=LiveChanges(
            workers=live.workers,
            disabled=live.disabled,
            drained=live.out or None,
            added=entry.added or None,
        ),
        endpoints=core.endpoints(config),
        generation=entry.desired.generation,
        worker_list=tuple(
            WorkerDetails(
                id=worker.id,
                pid=worker.placement.pid if worker.placement else None,
                where=worker.placement.where if worker.placement else "",
                phase=worker.phase.value,
                health=worker.status.value if worker.phase is Phase.READY else Status.UNKNOWN.value,
                resting=worker.resting,
                probes=_probes(core.health.probes(entry, worker)),
                placed_at=worker.placed_at or None,
            )
            for worker in entry.observed.workers.values()
        ),
        complaint=core.health.complaint(entry),
        preload_problem=entry.observed.preload_problem,
        certificate_expires=_iso(entry.observed.certificate_ends),
        failure=ErrorEntry.of(entry.observed.failure) if entry.observed.failure else None,
        config=table if reveal else masked(table, hidden=withheld_variables.values()),
        origin=origin,
        stacks=None if (stacks := core.stacks.last(entry)) is None else to_json(stacks),
        log_files=False if core.runner.capabilities.log_files is None else None,
    )


def server_problem(entry: Entry, message: str, hint: str) -> ServerError:
    """A problem of the server; the command gives it its code."""
    return ServerError(message, name=entry.name, bind=entry.config.key, hint=hint)


def disabled(entry: Entry) -> ServerError:
    """Why a server that was to be started is not."""
    hint = f"poolctl enable {entry.name}, or remove `disabled = true` from its table"
    return server_problem(entry, "is disabled", hint)


def drained(entry: Entry) -> ServerError:
    """Why a server that was to be started gets no traffic."""
    return server_problem(entry, "is drained: it runs, out of rotation", f"poolctl undrain {entry.name}")


def unwell(entry: Entry, complaint: str) -> ServerError:
    """The error of a running server that is unhealthy."""
    message = f"runs but is unhealthy{f': {complaint}' if complaint else ''}"
    return server_problem(entry, message, f"poolctl logs {entry.name}")


def complaint_of(core: Core, entry: Entry) -> str:
    """Why the server is unhealthy, or else why it is not ready; "" if it is neither, or the reason is not known."""
    failure = entry.observed.failure.message if entry.observed.failure is not None and not entry.ready else ""
    return core.health.complaint(entry) or failure


def as_kind(kind: type[PoolError], failure: ServerError) -> ErrorEntry:
    """The error with the code of the command that failed."""
    return replace(ErrorEntry.of(failure), code=kind.code, error=kind.error)


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _run(record: Table) -> Table:
    """The record of a run as JSON documents have it."""
    return {**record, **{key: _iso(record[key]) for key in ("started_at", "ended_at")}}


def _probes(probes: WorkerProbes | None) -> tuple[ProbeResult, ...]:
    return tuple(
        ProbeResult(
            kind=probe.kind,
            status=probe.status.value,
            message=probe.message,
            latency_seconds=probe.latency_seconds,
        )
        for probe in (probes.probes if probes is not None else ())
    )
