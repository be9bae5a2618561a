"""`poolctl top`: the servers as they are, live; without a terminal as text."""

from __future__ import annotations

import os
import signal
import sys
from time import sleep
from typing import TYPE_CHECKING

from poolctl.cli.command import INSPECT, SELECTION, Command, Option, flag, output
from poolctl.cli.command_line import CommandRequest, one_of
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import ask_for
from poolctl.cli.top.server_rows import SORTS, ServerBoard
from poolctl.control.answers import StatsResult
from poolctl.exit_codes import INTERRUPTED

if TYPE_CHECKING:
    from poolctl.cli.top.live_view import StatsSource

INTERVAL_SECONDS = 2.0
_LEAST_INTERVAL_SECONDS = 0.1

COMMAND = Command(
    "Show servers live (press ? for the keys).",
    SELECTION,
    output("json prints the view's figures as JSON.", "json"),
    Option("frames", "-n", "--frames", metavar="N", help="Exit after N views; without a terminal, print N."),
    flag("once", "--once", help="Print one view and exit."),
    Option("interval", "--interval", metavar="DURATION", help='Time between updates (default "2s").'),
    Option("sort", "--sort", metavar="COLUMN", words=tuple(SORTS), help=f"{', '.join(SORTS)}."),
    section=INSPECT,
    examples=("poolctl top --sort memory",),
)


def perform(request: CommandRequest) -> Outcome:
    """Show the view until it is left; NoSupervisor (6) when none runs. `-o json` prints what it shows."""
    if request.output not in ("", "json"):
        raise UsageError(f"top -o: unknown form {request.output!r}", hint="poolctl list prints tables")
    frames, interval = _frames(request), _interval(request)
    sort = one_of("--sort", request.get("sort") or "file", tuple(SORTS))
    pool = find_pool(request)
    result = ask_for(StatsResult, request, pool, "stats")
    if result.exit_code:
        raise Failure(Outcome.of(result))
    if request.output:
        return Outcome(result.items, extra={"gateway": result.gateway} if result.gateway else None)
    from poolctl.cli.top.live_view import StatsSource

    board = ServerBoard(sort=sort)
    board.update(result.items)
    source = StatsSource(pool, request.selector().to_dict())
    name = source.client.ping().name or "pool"
    if _is_terminal() and frames != 1:
        return _live(board, source, name, interval, frames)
    if frames is None and not request.quiet:
        sys.stderr.write("not a terminal: printing one snapshot (use `poolctl list -o json` in scripts)\n")
    return _print(board, source, name, interval, frames or 1)


def _live(board: ServerBoard, source: StatsSource, pool: str, interval: float, frames: int | None) -> Outcome:
    from poolctl.cli.top.live_view import LiveView
    from poolctl.cli.top.terminal import Screen, SignalReceived, TerminalSignals

    session = LiveView(board, source, pool=pool, interval_seconds=interval, frames=frames)
    try:
        with TerminalSignals() as signals, Screen() as screen:
            session.run(screen, signals)
    except KeyboardInterrupt:
        return Outcome.of_stream(INTERRUPTED)
    except SignalReceived as ended:
        # The terminal is restored; now the signal may have its default effect.
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
    finally:
        session.close()
    return Outcome.of_stream()


def _print(board: ServerBoard, source: StatsSource, pool: str, interval: float, frames: int) -> Outcome:
    from poolctl.cli.top.frames import frame_text

    for left in range(frames, 0, -1):
        sys.stdout.write(frame_text(board, pool))
        sys.stdout.flush()
        if left > 1:
            sleep(interval)
            sys.stdout.write("\n")
            board.update(source.read().items)
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
