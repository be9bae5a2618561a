"""The gateway as `list` and `status` show it."""

from __future__ import annotations

from poolctl.cli.outcome import Outcome
from poolctl.cli.render import count_text, duration
from poolctl.control.gateway_answers import GatewayStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.control.answers import Result

_INDENT = "  "


def add_gateway(outcome: Outcome, result: Result, width: int) -> str:
    """The gateway's line in so many columns, 0 for any; "" without one. The JSON document gets the member `gateway`."""
    if result.gateway is None:
        return ""
    outcome.extra["gateway"] = result.gateway
    return gateway_line(GatewayStatus.from_json(result.gateway), width)


def gateway_line(gateway: GatewayStatus, width: int = 0) -> str:
    """State, addresses and routes, and its figures where they are known, broken into lines of this width."""
    words = [f"[gateway] {gateway.state}", *gateway.addresses]
    words.append(f"{gateway.routes} route{'' if gateway.routes == 1 else 's'}")
    if gateway.pid is not None:
        words += [f"pid {gateway.pid}", f"up {duration(gateway.uptime_seconds)}"]
    if gateway.restarts:
        words.append(f"{gateway.restarts} restart{'' if gateway.restarts == 1 else 's'}")
    if (stats := gateway.stats) is not None:
        if stats.requests_per_second is not None:
            words.append(f"{count_text(stats.requests_per_second)} requests/s")
        words += [f"{stats.requests_total} requests", f"{stats.errors_total} errors"]
    lines = [words[0]]
    for word in words[1:]:
        if width and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += ","
            lines.append(_INDENT + word)
        else:
            lines[-1] += f", {word}"
    return "\n".join(lines)
