"""`poolctl backends`: lists the backends of the gateway; with an action, redirects or restores their traffic."""

from __future__ import annotations

import time
from types import SimpleNamespace

from poolctl.cli.command_line import BACKEND_ACTIONS, OUTPUT, Command, CommandRequest, Option, validate_choice
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import printable, set_table_text
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.gateway_answers import HostsResult
from poolctl.json_form import field_names, to_json
from poolctl.logs.log_line import seconds_of
from poolctl.routing.route_report import BackendReport, RequestedBackendState

COLUMNS = (
    "backend", "routes", "state", "health", "since", "until", "breaker", "conn", "in_flight", "errors", "why",
)  # fmt: skip
WIDE = (*COLUMNS[:7], "conn", "in_flight", "waiting", "requests", "errors", "why")
DISPENSABLE = ("since", "in_flight", "routes", "errors", "conn")

COMMAND = Command(
    "List the gateway's backends; disable, enable or drain some.",
    Option(
        "words",
        "[disable|enable|drain NAME…]",
        "What to do with which backends: names of servers, or URLs. Default: list all.",
        kind="list",
        completes="backends",
    ),
    Option(
        "--for",
        "DURATION",
        'How long to disable them; 0: until enabled. Default: traffic_re_enable in [gateway], "30s".',
        key="duration",
    ),
    OUTPUT,
    section="Look",
    fields=("backend", *field_names(BackendReport)),
    examples=(
        "poolctl backends disable users --for 30s",
        "poolctl backends drain users     then: poolctl backends enable users",
    ),
)


def perform(request: CommandRequest) -> Outcome:
    """List the backends, or perform an action on the named ones and list these. Raises UsageError and NoSupervisor."""
    action, *names = request.get("words") or [""]
    if action:
        return _change(request, validate_choice("backends", action, BACKEND_ACTIONS), names)
    if request.get("duration") is not None:
        raise UsageError(
            "--for belongs to `backends disable`", hint="poolctl backends disable NAME --for 30s"
        )
    result = ask_for(HostsResult, request, find_pool(request), "hosts")
    return _table_outcome(request, result)


def _change(request: CommandRequest, action: str, names: list[str]) -> Outcome:
    if not names:
        raise UsageError(f"backends {action}: which backends?", hint="`poolctl backends` lists them")
    seconds = request.seconds("duration", "--for")
    if seconds is not None and action != "disable":
        raise UsageError(
            f"--for does not belong to `backends {action}`", hint="it says how long a backend is disabled"
        )
    options = {"op": action, "hosts": names, "for": seconds}
    result = ask_for(HostsResult, request, find_pool(request), "host", options)
    if request.output:
        return _table_outcome(request, result)
    return Outcome.of(result, "\n".join(_sentence(each) for each in result.items))


def _table_outcome(request: CommandRequest, result: HostsResult) -> Outcome:
    lines = [_line(each) for each in result.items]
    columns, names = WIDE if request.output == "wide" else COLUMNS, (each.host for each in result.items)
    return set_table_text(request, Outcome.of(result), lines, columns, names, DISPENSABLE)


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


def _local_time(stamped: str) -> str:
    """The timestamp as local time for display, with the date if it is not today; "" for ""."""
    if not stamped:
        return ""
    moment = time.localtime(seconds_of(stamped))
    is_today = moment[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", moment)
