"""Clients of every kind, and the invariants for their requests.

- No request is refused, answered wrongly or left unanswered during kills, restarts, reloads and scaling.
- A request may be cut off only by the death of its worker: each killed worker of a server excuses one cut for each
  request that its clients can have in progress.
- A pause longer than the time for a head also ends a TLS handshake in progress, which needs the client once more.
- Without keeper and supervisor no process holds the listener of a sleeping server: it gets no requests then.
- `moving` has no clients: it is stopped and started, and stopped servers refuse connections.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator

from poolctl.worker.serving.connection_state import HEAD_SECONDS
from tests.load import Load, Report

from .stage import Fault, Stage

PAUSE_SECONDS = 0.03
PAUSES = {"sleepy": 0.16}  # it falls asleep just as the next request arrives
PATIENCE_SECONDS = 20.0
CLIENTS: dict[str, tuple[tuple[str, int], ...]] = {
    "plain": (("keep_alive", 3), ("new_connection", 2)),
    "several": (("keep_alive", 3), ("pipelined", 1), ("bodies", 1)),
    "long": (("websocket", 2), ("sse", 2), ("stream", 2)),
    "unix": (("new_connection", 1),),
    "tls": (("keep_alive", 1), ("new_connection", 1)),
    "noisy": (("keep_alive", 1),),
    "sleepy": (("new_connection", 1),),
}
DEPTH = 4


class Watch:
    """The clients of one stage, and the number of cuts excused for each server."""

    def __init__(self, stage: Stage) -> None:
        self.loads: dict[tuple[str, str], Load] = {}
        self._excuses: dict[str, int] = defaultdict(int)
        self.answered = 0
        for server, kinds in CLIENTS.items():
            for mode, connections in kinds:
                self.loads[server, mode] = Load(
                    [stage.address(server)], mode, connections=connections, tls=server == "tls", depth=DEPTH,
                    pause=PAUSES.get(server, PAUSE_SECONDS), patience=PATIENCE_SECONDS, chunks=8, chunk_pause=0.05,
                )  # fmt: skip

    def start(self) -> None:
        for load in self.loads.values():
            load.start()

    def stop(self) -> None:
        """Stop all clients; requests in progress are waited for, and count."""
        with contextlib.ExitStack() as stack:
            for load in self.loads.values():
                stack.callback(load.stop)
        self._judge((key, load.report) for key, load in self.loads.items())
        self.answered = sum(load.report.complete + load.report.messages for load in self.loads.values())

    def abort(self) -> None:
        """Stop the clients after a fault, ignoring their results."""
        for load in self.loads.values():
            with contextlib.suppress(Exception):
                load.stop()

    @contextlib.contextmanager
    def without(self, *servers: str) -> Iterator[None]:
        """Pause requests to the servers; earlier ones still count."""
        paused = {key: self.loads.pop(key) for key in list(self.loads) if key[0] in servers}
        reports = [(key, load.stop()) for key, load in paused.items()]
        try:
            self._judge(iter(reports))
            yield
        finally:
            for load in paused.values():
                load.start()
            self.loads |= paused

    def check(self) -> None:
        """Raise Fault if an invariant was violated."""
        self._judge((key, load.look()) for key, load in self.loads.items())

    def died(self, server: str) -> None:
        """A worker of the server was killed."""
        self._excuses[server] += 1

    def paused(self, seconds: float) -> None:
        """All processes of the pool were paused."""
        if seconds >= HEAD_SECONDS:
            self._excuses["tls"] += 1

    def _judge(self, reports: Iterator[tuple[tuple[str, str], Report]]) -> None:
        for (server, mode), report in reports:
            at_once = dict(CLIENTS[server])[mode] * (DEPTH if mode == "pipelined" else 1)
            excused = self._excuses[server] * at_once
            cut = report.reset + report.dropped + report.truncated
            if report.refused or report.wrong or report.unanswered or cut > excused:
                raise Fault(f"{mode} of {server}, {excused} cuts excused: {report}")
