"""Probes of targets outside the pool that the file names: failing targets get no requests until they answer again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from poolctl.config import Probe, Tables, probed_targets
from poolctl.probes.hysteresis import Hysteresis
from poolctl.routing.registration_report import FAILING, SERVING, STARTING
from poolctl.states import Status

from ..process.endpoint import ProbeState
from .url_probes import UrlProbes


class ProbeSettings(NamedTuple):
    """The URL of a target, and its probe."""

    to: str
    probe: Probe


class ProbedTarget:
    """A target and the results of its probes. It gets requests until it is known to fail."""

    __slots__ = ("hysteresis", "latency_seconds", "settings", "state", "why")

    def __init__(self, settings: ProbeSettings) -> None:
        self.settings = settings
        self.hysteresis = Hysteresis(settings.probe)
        self.state = STARTING
        self.why = ""
        self.latency_seconds: float | None = None

    def __repr__(self) -> str:
        return f"<ProbedTarget {self.settings.to}: {self.state}>"

    def record(self, problem: str, latency_seconds: float) -> None:
        """Take the result of a probe: a problem, or ""."""
        status = self.hysteresis.record(not problem)
        self.latency_seconds = None if problem else latency_seconds
        self.why = problem
        if status is Status.KO:
            self.state = FAILING
        elif not problem or self.state == FAILING:
            self.state = SERVING

    @property
    def report(self) -> ProbeState:
        """The state of the target for the gateway's process."""
        return ProbeState(
            host=self.settings.to,
            why=self.why if self.state == FAILING else "",
            answered=self.state == SERVING,
        )


class TargetProbes:
    """Probes the URLs that are targets in the file; calls `changed` when one starts to fail, or answers again."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._targets: dict[str, ProbedTarget] = {}
        self._probes: UrlProbes[ProbedTarget] | None = None

    def __iter__(self) -> Iterator[ProbedTarget]:
        return iter(self._targets.values())

    def follow(self, tables: Tables) -> None:
        """Probe as these tables say from now on. Results of a target whose probe stays the same are kept."""
        wanted = probed_targets(tables)
        if not (wanted or self._targets):
            return
        if self._probes is None:
            self._probes = UrlProbes(self._probed)
        for url, target in [*self._targets.items()]:
            if wanted.get(url) != target.settings.probe:
                self._probes.forget(target)
                del self._targets[url]
        for url, probe in wanted.items():
            if url not in self._targets:
                self._targets[url] = ProbedTarget(ProbeSettings(url, probe))
                self._probes.watch(self._targets[url])
        self._changed()

    @property
    def reports(self) -> dict[str, ProbeState]:
        """The last result of each target, by its URL."""
        return {url: each.report for url, each in self._targets.items()}

    def latency_seconds(self, url: str) -> float | None:
        """How long the last answer took; None where nothing was measured."""
        target = self._targets.get(url)
        return None if target is None else target.latency_seconds

    def close(self) -> None:
        """Stop probing."""
        if self._probes is not None:
            self._probes.close()

    def _probed(self, target: ProbedTarget, problem: str, latency_seconds: float) -> None:
        before = target.report
        target.record(problem, latency_seconds)
        if target.report != before:
            self._changed()
