"""The gateway's statistics, from the counters of the serving HAProxy and of replaced ones until they exit."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from poolctl.routing.route import Target
from poolctl.routing.route_report import BackendReport

from ..haproxy.counters import READ_COUNTERS, CounterReader, rows_of
from ..haproxy.process import HaproxyProcess, HaproxyRefusal, RuntimeSession
from ..repeated_work import RepeatedWork
from .breaker import Results
from .outside_targets import connection_problem
from .targets import Targets

# How often counters are read, and the maximum share of time for it: thousands of routes have megabytes of them.
_INTERVAL_SECONDS, _MAX_TIME_SHARE = 1.0, 0.05
_MAX_READINGS = 5  # over which rates are computed
# A hung HAProxy must not delay commands for longer.
_ANSWER_SECONDS = 3.0
# The time limit for connecting to a target to find out why HAProxy could not.
_EXPLAIN_TIMEOUT = 5.0

logger = logging.getLogger("poolctl.supervisor")


class Rates(NamedTuple):
    """The requests and failures of each second."""

    requests: float
    errors: float


class _Reading(NamedTuple):
    at: float
    requests: int
    errors: int


class GatewayFigures:
    """Reads the counters of HAProxy about once a second into the targets' counts and breakers.

    `serving` returns the serving process or None. `changed` is called when other targets get requests because of the
    counters; `counted` after each reading, with the process and its number of requests of each route.
    """

    def __init__(
        self,
        targets: Targets,
        serving: Callable[[], HaproxyProcess | None],
        changed: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self.counted: Callable[[HaproxyProcess, dict[str, int]], None] = lambda process, requests: None
        self._targets = targets
        self._serving = serving
        self._changed = changed
        self._now = now  # a monotonic clock
        self._readings: deque[_Reading] = deque(maxlen=_MAX_READINGS)  # a second apart
        self._readers: dict[HaproxyProcess, CounterReader] = {}  # of replaced processes until they end
        self._counts_precede_start = False  # whether the next figures are from before this supervisor
        self._reading = asyncio.Lock()
        self._work: set[asyncio.Task[None]] = set()

    def begin_process(self, process: HaproxyProcess, *, is_new: bool) -> None:
        """Read the counters of this serving process from now on; those of a new process begin at 0."""
        self._counts_precede_start = not is_new
        self._start(self._read_often(process))

    async def follow_replaced(self, replaced: HaproxyProcess) -> None:
        """Continue to read the counters of a process that has just been replaced, until it ends."""
        if replaced.setup is None:
            return
        try:
            session = await RuntimeSession.open(replaced.path)
        except HaproxyRefusal as refusal:
            logger.warning("the last figures of a replaced HAProxy are lost: %s", refusal)
            self._readers.pop(replaced, None)
        else:
            self._start(self._read_until_end(session, replaced))

    async def read(self) -> bool:
        """Read the counters now; returns whether HAProxy has answered."""
        async with self._reading:
            process = self._serving()
            if process is None or process.setup is None:
                self._readings.clear()
                return False
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    text = await process.ask(*READ_COUNTERS)
            except (HaproxyRefusal, TimeoutError) as error:
                if not process.exited.done():
                    logger.warning("HAProxy does not report its figures: %s", error or "no answer in time")
                self._readings.clear()
                return False
            await self._add(text, process)
            reading = self._present()
            if not self._readings or reading.at - self._readings[-1].at >= _INTERVAL_SECONDS:
                self._readings.append(reading)
        return True

    def rates(self) -> Rates | None:
        """The rates of the last seconds; None until they are known."""
        now, before = self._present(), self._readings[0] if self._readings else None
        if before is None or (seconds := now.at - before.at) < _INTERVAL_SECONDS:
            return None
        return Rates((now.requests - before.requests) / seconds, (now.errors - before.errors) / seconds)

    def _present(self) -> _Reading:
        counts, total = self._targets.counts, self._targets.counts.total
        return _Reading(self._now(), total.requests + sum(counts.refused.values()), total.failures)

    async def _read_often(self, process: HaproxyProcess) -> None:
        reading = RepeatedWork("the counters of the gateway")
        while process is self._serving():
            async with _throttled():
                with reading.attempt():
                    await self.read()

    async def _read_until_end(self, session: RuntimeSession, process: HaproxyProcess) -> None:
        reading = RepeatedWork("the counters of a replaced HAProxy")
        try:
            has_connections = True
            while has_connections:
                async with _throttled(), self._reading:
                    has_connections = await session.has_connections()
                    text = "".join(await session.ask(*READ_COUNTERS))
                    with reading.attempt():
                        await self._add(text, process)
        except HaproxyRefusal:
            pass  # it was ended
        finally:
            session.close()
            self._readers.pop(process, None)

    async def _add(self, text: str, process: HaproxyProcess) -> None:
        if process not in self._readers:
            self._readers = {
                other: counter_reader
                for other, counter_reader in self._readers.items()
                if not other.exited.done()
            }
            self._readers[process] = CounterReader(self._targets.counts)
        reader = self._readers[process]
        rows = await asyncio.to_thread(lambda: reader.compare(rows_of(text)))
        results = reader.add(rows, process.sections)
        self.counted(process, reader.requests)
        if process is not self._serving():
            return
        if self._counts_precede_start:
            # Counts from before this supervisor: successes still count, but the time of failures is unknown.
            results = {place: Results(answered=result.answered) for place, result in results.items()}
            self._counts_precede_start = False
        if self._targets.record_results(results):
            self._changed()
        while self._targets.unexplained:
            self._start(self._explain(*self._targets.unexplained.popitem()))

    async def _explain(self, key: str, target: Target) -> None:
        problem = ""
        with RepeatedWork(f"why no connection to {key} can be made").attempt():
            problem = await connection_problem(target, _EXPLAIN_TIMEOUT)
        self._targets.explain(key, problem)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def close(self) -> None:
        """Stop reading."""
        for task in list(self._work):
            task.cancel()

    # The figures at the last reading.

    @property
    def connections(self) -> int:
        """The number of clients' connections."""
        return sum(reader.connections for reader in self._readers.values())

    @property
    def open_streams(self) -> Counter[str]:
        """The open connections of each stream, by alias."""
        return sum((reader.open_streams for reader in self._readers.values()), Counter())

    @property
    def queued(self) -> Counter[str]:
        """The requests waiting for a busy target, by `route_key`."""
        return sum((reader.queued for reader in self._readers.values()), Counter())

    def backends(self) -> list[BackendReport]:
        """A report on each target of a route."""
        in_flight = sum((reader.in_flight for reader in self._readers.values()), Counter[tuple[str, str]]())
        return [*self._targets.reports(in_flight, self.queued)]


@asynccontextmanager
async def _throttled() -> AsyncIterator[None]:
    """Context manager: at its end, pauses so that its body takes at most _SHARE of the time."""
    now = asyncio.get_running_loop().time
    began = now()
    yield
    await asyncio.sleep(max(_INTERVAL_SECONDS, (now() - began) / _MAX_TIME_SHARE))
