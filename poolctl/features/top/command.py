"""`poolctl top`: shows a live view of the servers; without a terminal prints it once as text."""

from __future__ import annotations

import os
import signal
import sys
from time import monotonic
from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Selection, duration, examples, forms, near_or_all, one_of, with_options
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.control.gateway_answers import RoutesResult
from poolctl.control.server_answers import StatsResult
from poolctl.exit_codes import INTERRUPTED, NOTHING_MATCHED

from ._boards import ROUTE_ORDERS, SERVER_ORDERS, PoolView, RouteBoard, ServerBoard

INTERVAL_SECONDS = 2.0
_MIN_INTERVAL_SECONDS = 0.1

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand, epilog=examples("poolctl top --sort memory", "poolctl top --routes --sort errors")
)
@with_options
def top(
    place: Place,
    selection: Selection,
    output: Annotated[str | None, forms("json", help="json prints the view's figures as JSON.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one view and exit.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="DURATION", parser=duration, help="Time between updates.")
    ] = INTERVAL_SECONDS,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            help=f"{', '.join(SERVER_ORDERS)}; of routes {', '.join(ROUTE_ORDERS)}.",
            **one_of((*SERVER_ORDERS, *ROUTE_ORDERS)),
        ),
    ] = None,
    routes: Annotated[
        bool,
        typer.Option(
            "--routes", help="Start with the gateway's routes instead of the servers (Tab switches)."
        ),
    ] = False,
) -> Outcome:
    """Show servers live (press ? for the keys)."""
    orders = ROUTE_ORDERS if routes else SERVER_ORDERS
    sort = sort or "problems"
    if sort not in orders:
        raise UsageError(f"--sort: unknown value {sort!r}", hint=near_or_all(sort, orders))
    pool = find_pool(place)
    options = {} if output else {"errors": True}
    result = ask_for(StatsResult, Request("stats", place, selection, options, command="top"), pool)
    if result.exit_code:
        raise Failure(Outcome.of(result))
    if output:
        return Outcome(result.items, extra={"gateway": result.gateway} if result.gateway else None)
    servers = ServerBoard(sort="problems" if routes else sort)
    view = PoolView(pool, selection.selector().to_dict(), max(interval, _MIN_INTERVAL_SECONDS), servers)
    view.update(result)
    if routes:
        if view.gateway is None:
            hint = "a [gateway] or a [[route]] in the file adds one; --routes selects no servers"
            raise Failure(Outcome.failed(NOTHING_MATCHED, "the pool has no gateway", hint))
        view.routes = RouteBoard(sort=sort)
        view.routes.receive(view.client.ask(RoutesResult, "routes").items, monotonic())
    if not once:
        if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            return _live(view)
        if not place.quiet:
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
