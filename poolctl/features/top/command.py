"""`poolctl top`: shows a live view of the servers; without a terminal prints it once as text."""

from __future__ import annotations

import os
import signal
import sys
from time import monotonic, sleep
from typing import TYPE_CHECKING

from poolctl.cli.command_line import SELECTION, Command, CommandRequest, Option, flag, one_of, output
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import ask_for
from poolctl.control.statistics_answers import StatsResult
from poolctl.exit_codes import INTERRUPTED, NOTHING_MATCHED

from ._server_rows import SORTS, ServerBoard

if TYPE_CHECKING:
    from ._pool_requests import PoolView

INTERVAL_SECONDS = 2.0
_LEAST_INTERVAL_SECONDS = 0.1
ROUTE_SORTS = ("problems", "name", "requests", "waiting", "errors", "latency", "file")

COMMAND = Command(
    "Show servers live (press ? for the keys).",
    SELECTION,
    output("json prints the view's figures as JSON.", "json"),
    Option("frames", "-n", "--frames", metavar="N", help="Exit after N views; without a terminal, print N."),
    flag("once", "--once", help="Print one view and exit."),
    Option("interval", "--interval", metavar="DURATION", help='Time between updates (default "2s").'),
    Option(
        "sort",
        "--sort",
        metavar="COLUMN",
        words=tuple(dict.fromkeys((*SORTS, *ROUTE_SORTS))),
        help=f"{', '.join(SORTS)}; of routes {', '.join(ROUTE_SORTS)}.",
    ),
    flag("routes", "--routes", help="Start with the gateway's routes instead of the servers (Tab switches)."),
    section="Look",
    examples=("poolctl top --sort memory", "poolctl top --routes --sort errors"),
)


def perform(request: CommandRequest) -> Outcome:
    """Show the view until the user leaves it; NoSupervisor (6) if no supervisor runs. `-o json` prints its data."""
    if request.output not in ("", "json"):
        raise UsageError(f"top -o: unknown form {request.output!r}", hint="poolctl list prints tables")
    frames, interval = _frames(request), _interval(request)
    sort = one_of(
        "--sort", request.get("sort") or "problems", ROUTE_SORTS if request.get("routes") else tuple(SORTS)
    )
    pool = find_pool(request)
    result = ask_for(StatsResult, request, pool, "stats", None if request.output else {"errors": True})
    if result.exit_code:
        raise Failure(Outcome.of(result))
    if request.output:
        return Outcome(result.items, extra={"gateway": result.gateway} if result.gateway else None)
    from ._pool_requests import PoolView, StatsSource

    source = StatsSource(pool, request.selector().to_dict())
    servers = ServerBoard(sort="problems" if request.get("routes") else sort)
    view = PoolView(source, source.client.ping().name or "pool", interval, servers, result)
    if request.get("routes"):
        if view.gateway is None:
            hint = "a [gateway] or a [[route]] in the file adds one; --routes selects no servers"
            raise Failure(Outcome.failed(NOTHING_MATCHED, "the pool has no gateway", hint))
        from ._route_rows import RouteBoard

        view.routes = RouteBoard(sort=sort)
        view.routes.receive(source.routes().items, monotonic())
    if _is_terminal() and frames != 1:
        return _live(view, frames)
    if frames is None and not request.quiet:
        sys.stderr.write("not a terminal: printing one snapshot (use `poolctl list -o json` in scripts)\n")
    return _print(view, frames or 1)


def _live(view: PoolView, frames: int | None) -> Outcome:
    from ._live_view import LiveView
    from ._terminal import Screen, SignalReceived, TerminalSignals

    session = LiveView(view, frames)
    try:
        with TerminalSignals() as signals, Screen() as screen:
            session.run(screen, signals)
    except KeyboardInterrupt:
        return Outcome.of_stream(INTERRUPTED)
    except SignalReceived as ended:
        # The terminal is restored, so the signal may now have its default effect.
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
    finally:
        session.close()
    return Outcome.of_stream()


def _print(view: PoolView, frames: int) -> Outcome:
    from ._frames import frame_text

    for left in range(frames, 0, -1):
        sys.stdout.write(frame_text(view.servers, view.pool, view.gateway, view.routes))
        sys.stdout.flush()
        if left > 1:
            sleep(view.interval_seconds)
            sys.stdout.write("\n")
            view.take(view.source.read())
            if view.routes is not None:
                view.routes.receive(view.source.routes().items, monotonic())
    return Outcome.of_stream()


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _frames(request: CommandRequest) -> int | None:
    if request.get("once"):
        return 1
    text = request.get("frames")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**9:
        raise UsageError(f"-n: {text!r} is not a number of views", hint="1 prints one view and exits")
    return int(text)


def _interval(request: CommandRequest) -> float:
    seconds = request.seconds("interval")
    if seconds is None:
        return INTERVAL_SECONDS
    return max(seconds, _LEAST_INTERVAL_SECONDS)
