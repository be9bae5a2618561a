"""Lines for several commands: numbers of ready servers, addresses, stacks of hung workers, the gateway."""

from __future__ import annotations

from poolctl.cli.render import count_text, duration, is_server, printable, servers, without_password

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolctl.control.answers import Item, Result
    from poolctl.json_form import Table

MOST_ADDRESSES = 10
MOST_STACK_LINES = 20
_UNREACHABLE = ("stopped", "stopping", "backoff", "failed", "disabled")
# Intended states of servers that are not ready.
_INTENDED_STATES = ("sleeping", "draining", "disabled")

# States in which a server is not expected to be ready.
AT_REST = ("stopped", "disabled", "sleeping")


def count_ready(items: Iterable[Item]) -> tuple[int, int]:
    """The numbers of ready and expected servers; servers at rest do not count unless ready (a job)."""
    expected = [item for item in items if item.state not in AT_REST or item.ready]
    return sum(item.ready for item in expected), len(expected)


def ready_line(result: Result, *, waited: bool, restarted: bool = False) -> str:
    """`3 servers ready` or `3 servers restarted`, with servers in other intended states in brackets.

    A restart has a line of its own for each job with a schedule.
    """
    items = [item for item in result.items if not (restarted and item.next_run_at)]
    if not items:
        done = (
            "the gateway serves; the pool has no server" if result.without_servers else "no server selected"
        )
        return "" if result.exit_code else done
    # A sleeping server that is ready is a job waiting for its time.
    asides = {
        state: sum(item.state == state and not item.ready for item in items) for state in _INTENDED_STATES
    }
    ready = sum(item.ready for item in items)
    count = len(items) - sum(asides.values())
    line = f"{servers(ready, count)} {'restarted' if restarted else 'ready'}"
    if not waited:  # the old processes of restarting servers are still ready
        line = f"{servers(count)} restarting" if restarted else f"{servers(count)} starting, {ready} ready"
    said = ", ".join(f"{number} {state}" for state, number in asides.items() if number)
    return f"{line} ({said})" if said else line


def address_lines(items: Iterable[object]) -> list[str]:
    """The URLs of the first ten servers, `users http://localhost:8081`, and the number of further ones."""
    found = [
        (printable(item.name), without_password(printable(item.expose)))
        for item in items
        if is_server(item) and item.expose and item.state not in _UNREACHABLE
    ]
    shown = found[:MOST_ADDRESSES]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [f"{name.ljust(width)}  {address}" for name, address in shown]
    return [*lines, f"and {more} more: poolctl list"] if (more := len(found) - len(shown)) else lines


def stack_lines(document: Table) -> list[str]:
    """The worker and the first lines of its stacks, the main thread's innermost call first."""
    from itertools import islice

    from poolctl.json_form import from_json
    from poolctl.runners.stack_report import WorkerStacks

    stacks = from_json(WorkerStacks, document)
    head = f"worker {stacks.worker} (pid {stacks.pid})"
    return [*map(printable, [head, *islice(stacks.lines(), MOST_STACK_LINES)])]


_INDENT = "  "


def footer_of(gateway: Table, width: int) -> str:
    """The line in this many columns (0: any), followed by the reason why not all addresses are served."""
    problem = f"\n{_INDENT}{gateway['problem']}" if gateway["problem"] else ""
    return gateway_line(gateway, width) + problem


def serves_line(gateway: Table) -> str:
    """The addresses for clients; "" if it does not serve."""
    return f"the gateway serves {', '.join(gateway['addresses'])}" if gateway["state"] == "running" else ""


def gateway_line(gateway: Table, width: int = 0) -> str:
    """State, addresses, routes and known figures, broken into lines of this width."""
    words = [f"[gateway] {gateway['state']}", *gateway["addresses"]]
    words.append(_counted(gateway["routes"], "route"))
    if gateway["pid"] is not None:
        words += [f"pid {gateway['pid']}", f"up {duration(gateway['uptime_seconds'])}"]
    if gateway["restarts"]:
        words.append(_counted(gateway["restarts"], "restart"))
    if (stats := gateway.get("stats")) is not None:
        if stats["requests_per_second"] is not None:
            words.append(f"{count_text(stats['requests_per_second'])} requests/s")
        words += [_counted(stats["requests_total"], "request"), _counted(stats["errors_total"], "error")]
        if stats["refused_total"]:
            words.append(f"{stats['refused_total']} refused")
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
