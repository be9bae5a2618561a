"""Answers of a supervisor about the details of its servers, and what their workers do now."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import ErrorEntry, Item, Result
from poolctl.json_form import Table
from poolctl.runners.stack_report import WorkerStacks


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The last result of a worker's probe."""

    kind: str
    status: str
    message: str
    latency_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDetails:
    """One worker, as `show` reports it."""

    id: str
    pid: int | None
    where: str
    phase: str
    health: str
    resting: bool
    probes: tuple[ProbeResult, ...]
    # Seconds since the epoch; left out for a worker of an earlier supervisor.
    placed_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveChanges:
    """The live changes that override the configuration."""

    workers: int | None = None
    disabled: bool | None = None
    drained: bool | None = None
    added: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteToServer:
    """A route of the gateway that leads to the server: `protocol` is http, or for a stream tcp or udp.

    For a stream, `host` is the gateway's own address.
    """

    alias: str
    protocol: str
    host: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Described(Item):
    """A server with its effective configuration, and where each value comes from.

    `routes` are left out where the pool has no gateway.
    """

    config: Table
    origin: dict[str, str] | None
    routes: tuple[RouteToServer, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Details(Item):
    """A running server, as `show` reports it."""

    overrides: LiveChanges
    endpoints: tuple[str, ...]
    generation: int
    worker_list: tuple[WorkerDetails, ...]
    complaint: str
    preload_problem: str
    certificate_expires: str | None
    failure: ErrorEntry | None
    config: Table
    origin: dict[str, str] | None
    # False if the output is not in files on this machine, else left out.
    log_files: bool | None = None
    routes: tuple[RouteToServer, ...] | None = None
    # A WorkerStacks: the stacks of the last worker that hung or was not ready in time.
    stacks: Table | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowResult(Result):
    """The answer of `show`."""

    items: tuple[Details, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StacksResult(Result):
    """The answer of `stacks`: one item for each worker of the selected servers."""

    items: tuple[WorkerStacks, ...] = ()  # type: ignore[assignment]
