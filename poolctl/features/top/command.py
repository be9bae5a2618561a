"""`poolctl top`: shows a live view of the servers; without a terminal prints it once as text."""

from __future__ import annotations

import os
import signal
import sys
from time import monotonic

from poolctl.cli.command_line import SELECTION, Command, CommandRequest, Option, flag, output, validate_choice
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.gateway_answers import RoutesResult
from poolctl.control.server_answers import StatsResult
from poolctl.exit_codes import INTERRUPTED, NOTHING_MATCHED

from ._boards import ROUTE_ORDERS, SERVER_ORDERS, PoolView, RouteBoard, ServerBoard

INTERVAL_SECONDS = 2.0
_LEAST_INTERVAL_SECONDS = 0.1

COMMAND = Command(
    "Show servers live (press ? for the keys).",
    SELECTION,
    output("json prints the view's figures as JSON.", "json"),
    flag("--once", "Print one view and exit."),
    Option("--interval", "DURATION", 'Time between updates (default "2s").'),
    Option(
        "--sort",
        "COLUMN",
        f"{', '.join(SERVER_ORDERS)}; of routes {', '.join(ROUTE_ORDERS)}.",
        words=tuple(dict.fromkeys((*SERVER_ORDERS, *ROUTE_ORDERS))),
    ),
    flag("--routes", "Start with the gateway's routes instead of the servers (Tab switches)."),
    section="Look",
    examples=("poolctl top --sort memory", "poolctl top --routes --sort errors"),
)


def perform(request: CommandRequest) -> Outcome:
    """Show the pool's live view until the user quits; with `-o json`, return its data once. Raises NoSupervisor."""
    if request.output not in ("", "json"):
        raise UsageError(f"top -o: unknown form {request.output!r}", hint="poolctl list prints tables")
    orders = ROUTE_ORDERS if request.get("routes") else SERVER_ORDERS
    sort = validate_choice("--sort", request.get("sort") or "problems", tuple(orders))
    interval_seconds = request.seconds("interval")
    if interval_seconds is None:
        interval_seconds = INTERVAL_SECONDS
    pool = find_pool(request)
    result = ask_for(StatsResult, request, pool, "stats", None if request.output else {"errors": True})
    if result.exit_code:
        raise Failure(Outcome.of(result))
    if request.output:
        return Outcome(result.items, extra={"gateway": result.gateway} if result.gateway else None)
    servers = ServerBoard(sort="problems" if request.get("routes") else sort)
    view = PoolView(
        pool, request.selector().to_dict(), max(interval_seconds, _LEAST_INTERVAL_SECONDS), servers
    )
    view.update(result)
    if request.get("routes"):
        if view.gateway is None:
            hint = "a [gateway] or a [[route]] in the file adds one; --routes selects no servers"
            raise Failure(Outcome.failed(NOTHING_MATCHED, "the pool has no gateway", hint))
        view.routes = RouteBoard(sort=sort)
        view.routes.receive(view.client.ask(RoutesResult, "routes").items, monotonic())
    if not request.get("once"):
        if _is_terminal():
            return _live(view)
        if not request.quiet:
            sys.stderr.write(
                "not a terminal: printing one snapshot (use `poolctl list -o json` in scripts)\n"
            )
    from ._frames import frame_text

    return Outcome(text=frame_text(view.servers, view.pool, view.gateway, view.routes))


def _live(view: PoolView) -> Outcome:
    import asyncio

    from ._live_view import LiveView

    async def show() -> int:
        return await LiveView(view).run()

    ended_by = asyncio.run(show())
    if ended_by == signal.SIGINT:
        return Outcome.of_stream(INTERRUPTED)
    if ended_by:
        # The terminal is restored, so the signal may now have its default effect.
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    return Outcome.of_stream()


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
