"""The gateway's line in `list` and `status`."""

from __future__ import annotations

from poolctl.cli.outcome import Outcome
from poolctl.cli.render import count_text, duration
from poolctl.control.gateway_status import GatewayStatus
from poolctl.json_form import Table, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.control.answers import Result

_INDENT = "  "


def add_gateway(outcome: Outcome, result: Result, width: int) -> str:
    """The line in this many columns (0: any), "" without a gateway. Adds the member `gateway` to the JSON document."""
    if result.gateway is None:
        return ""
    outcome.extra["gateway"] = result.gateway
    return gateway_line(from_json(GatewayStatus, result.gateway), width)


def footer_of(gateway: Table, width: int) -> str:
    """The line in this many columns (0: any), followed by the reason why not all addresses are served."""
    return gateway_line(from_json(GatewayStatus, gateway), width) + problem_line(gateway)


def problem_line(gateway: Table) -> str:
    """The reason why it does not serve all its addresses, on a separate line; "" if it does."""
    problem = from_json(GatewayStatus, gateway).problem
    return f"\n{_INDENT}{problem}" if problem else ""


def serves_line(gateway: Table) -> str:
    """The addresses for clients; "" if it does not serve."""
    status = from_json(GatewayStatus, gateway)
    return f"the gateway serves {', '.join(status.addresses)}" if status.state == "running" else ""


def gateway_line(gateway: GatewayStatus, width: int = 0) -> str:
    """State, addresses, routes and known figures, broken into lines of this width."""
    words = [f"[gateway] {gateway.state}", *gateway.addresses]
    words.append(_counted(gateway.routes, "route"))
    if gateway.pid is not None:
        words += [f"pid {gateway.pid}", f"up {duration(gateway.uptime_seconds)}"]
    if gateway.restarts:
        words.append(_counted(gateway.restarts, "restart"))
    if (stats := gateway.stats) is not None:
        if stats.requests_per_second is not None:
            words.append(f"{count_text(stats.requests_per_second)} requests/s")
        words += [_counted(stats.requests_total, "request"), _counted(stats.errors_total, "error")]
        if stats.refused_total:
            words.append(f"{stats.refused_total} refused")
    lines = [words[0]]
    for word in words[1:]:
        if width and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += ","
            lines.append(_INDENT + word)
        else:
            lines[-1] += f", {word}"
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
