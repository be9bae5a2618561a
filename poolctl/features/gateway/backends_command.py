"""`poolctl backends`: lists the backends of the gateway; with an action, redirects or restores their traffic."""

from __future__ import annotations

import time
from enum import StrEnum
from types import SimpleNamespace
from typing import Annotated

import typer

from poolctl.cli import completion
from poolctl.cli.group import PoolCommand
from poolctl.cli.options import duration, examples, forms, with_options
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import printable, set_table_text
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.control.gateway_answers import HostsResult
from poolctl.json_form import field_names, to_json
from poolctl.logs.log_line import seconds_of
from poolctl.routing.route_report import BACKEND_COLUMNS, BackendReport, RequestedBackendState

COLUMNS = (
    "backend", "routes", "state", "health", "since", "until", "breaker", "conn", "in_flight", "errors", "why",
)  # fmt: skip
DISPENSABLE = ("since", "in_flight", "routes", "errors", "conn")

app = typer.Typer(add_completion=False)


class BackendAction(StrEnum):
    """What to do with backends instead of listing them."""

    DISABLE = "disable"
    ENABLE = "enable"
    DRAIN = "drain"


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl backends disable users --for 30s",
        "poolctl backends drain users     then: poolctl backends enable users",
    ),
)
@with_options
def backends(
    place: Place,
    action: Annotated[
        BackendAction | None,
        typer.Argument(metavar="[disable|enable|drain]", help="What to do with backends. Default: list all."),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Names of servers, or URLs.", autocompletion=completion.backends
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for",
            metavar="DURATION",
            parser=duration,
            help="How long to disable them; 0: until enabled. Default: traffic_re_enable of the gateway, 30s.",
        ),
    ] = None,
    output: Annotated[str | None, forms(fields=("backend", *field_names(BackendReport)))] = None,
) -> Outcome:
    """List the gateway's backends; disable, enable or drain some."""
    if action:
        return _change(place, action, names or [], seconds, output)
    if seconds is not None:
        raise UsageError(
            "--for belongs to `backends disable`", hint="poolctl backends disable NAME --for 30s"
        )
    request = Request("hosts", place, command="backends")
    return _table_outcome(output, ask_for(HostsResult, request, find_pool(place)))


def _change(
    place: Place, action: BackendAction, names: list[str], seconds: float | None, output: str | None
) -> Outcome:
    if not names:
        raise UsageError(f"backends {action}: which backends?", hint="`poolctl backends` lists them")
    if seconds is not None and action != BackendAction.DISABLE:
        raise UsageError(
            f"--for does not belong to `backends {action}`", hint="it says how long a backend is disabled"
        )
    options = {"op": action.value, "hosts": names, "for": seconds}
    request = Request("host", place, options=options, command="backends")
    result = ask_for(HostsResult, request, find_pool(place))
    if output:
        return _table_outcome(output, result)
    return Outcome.of(result, "\n".join(_sentence(item) for item in result.items))


def _table_outcome(output: str | None, result: HostsResult) -> Outcome:
    lines = [_line(item) for item in result.items]
    columns, names = BACKEND_COLUMNS if output == "wide" else COLUMNS, (item.host for item in result.items)
    return set_table_text(Outcome.of(result), output, lines, columns, names, DISPENSABLE)


def _line(host: BackendReport) -> SimpleNamespace:
    times = {"since": _local_time(host.since), "until": _local_time(host.until)}
    return SimpleNamespace(**{**to_json(host), **times}, backend=host.host, conn=host.connections)


def _sentence(host: BackendReport) -> str:
    name = printable(host.host)
    if host.state == RequestedBackendState.ACTIVE:
        return f"{name}: {host.state}"
    command = f"`poolctl backends enable {name}`"
    if not host.until:
        return f"{name}: {host.state} until {command}"
    until = f"{_local_time(host.until)}, then active again by itself"
    return f"{name}: {host.state} until {until}; --for 0 disables it until {command}"


def _local_time(timestamp: str) -> str:
    """The timestamp as local time, with the date if it is not today; "" for ""."""
    if not timestamp:
        return ""
    local = time.localtime(seconds_of(timestamp))
    is_today = local[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", local)
