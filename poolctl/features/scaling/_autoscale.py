"""Decides the number of a server's workers from samples of its load. Does no I/O and reads no clock.

It adds workers as soon as the average over a short part of the window is above a target, and removes workers only if
the current number was not needed at any time during `cooldown.down`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from math import ceil
from types import MappingProxyType
from typing import Any, NamedTuple

from ._triggers import TRIGGERS
from .keys import Scale

# The part of the window whose average decides on an increase: short, so that a new worker answers soon.
_SHORT_WINDOW_SHARE = 0.1
# Workers are removed only if the load of the remaining ones would stay below these shares of the target, over the
# whole window and over its short part.
_WINDOW_SHARE_OF_TARGET = 0.8
_SHORT_WINDOW_SHARE_OF_TARGET = 0.9
# After a longer time without samples (the process or the machine was paused), earlier samples are discarded.
_PAUSED_SECONDS = 2.0
_MAX_COOLDOWN_FACTOR = 8.0
_ROUNDING = 1e-9


class LoadSample(NamedTuple):
    """A sample of a server's load over all its ready workers; `figures` are the measurements by trigger."""

    at: float
    ready: int
    serves: bool  # at least one of them is not unhealthy
    demand: int = 0  # requests that wait elsewhere for this server, since the previous sample
    figures: Mapping[str, Any] = MappingProxyType({})


class Decision(NamedTuple):
    """A change from `before` to `after` workers. `value` is in seconds for a latency, otherwise a figure per worker.

    If more workers are needed but `scale.max` does not allow any more, `after` equals `before`.
    """

    before: int
    after: int
    trigger: str
    value: float
    target: float
    window_seconds: float


class _Window:
    def __init__(self, seconds: float, triggers: Iterable[str]) -> None:
        self.seconds = seconds
        self.demand = 0  # requests that wait elsewhere, reported within the window
        self._samples: deque[LoadSample] = deque()
        self._accumulators: dict[str, Any] = {name: TRIGGERS[name].new_accumulator() for name in triggers}

    def add(self, load: LoadSample) -> None:
        """Add a sample, and remove samples that are too old."""
        self._samples.append(load)
        self._count(load, 1)
        while self._samples[0].at <= load.at - self.seconds:
            self._count(self._samples.popleft(), -1)

    def _count(self, load: LoadSample, sign: int) -> None:
        self.demand += sign * load.demand
        for name, accumulator in self._accumulators.items():
            accumulator.add(load.figures[name], sign)

    def least_ready(self) -> int:
        return min(load.ready for load in self._samples)

    def value(self, trigger: str) -> float | None:
        """Return the average over time of all workers' sum; for p50 and p99, a latency in seconds. None if unknown."""
        average: float | None = self._accumulators[trigger].value
        return average


class _Need(NamedTuple):
    at: float
    workers: int
    trigger: str
    value: float
    target: float


class Autoscale:
    """Decides the number of one server's workers. `now` is the monotonic time at which its samples begin."""

    def __init__(self, scale: Scale, now: float) -> None:
        self._min_workers, self._max_workers = max(scale.min, 1), scale.max
        self._window = scale.window
        self._up, self._down = scale.cooldown.up, scale.cooldown.down
        self._targets = scale.triggers.targets
        self._has_latencies = any(TRIGGERS[trigger].is_latency for trigger in self._targets)
        self._cooldown_factor = 1.0  # factor of cooldown.down; grows when a decrease was a mistake
        self._increased_at = self._decreased_at = float("-inf")
        self._was_last_decrease_wrong = (
            True  # more workers were needed soon after the last decrease, or there was none yet
        )
        self._reset(now)

    def _reset(self, now: float) -> None:
        self._short_window = _Window(self._window * _SHORT_WINDOW_SHARE, self._targets)
        self._latest = _Window(self._window * _SHORT_WINDOW_SHARE / 2, self._targets)
        self._long_window = _Window(self._window, self._targets)
        self._above_since = float("inf")
        self._early_demand = 0
        self._began_at = self._at = now
        self._restart_cooldown(now)
        self._limited_at = float("-inf")

    def _restart_cooldown(self, now: float) -> None:
        """Restart the cooldown: the number of workers is not decreased for at least `cooldown.down` from `now`."""
        self._cooling_since = now
        # In descending order, so that the first is the greatest of the period.
        self._recent_needs: deque[_Need] = deque()

    def decide(self, load: LoadSample, size: int, *, may_change: bool = True) -> Decision | None:
        """The change that this sample causes for a server with `size` desired workers; None for no change.

        The caller makes the change at once. Without `may_change`, as for a failing server, nothing is changed.
        """
        if load.at - self._at > max(_PAUSED_SECONDS, self._short_window.seconds):
            self._reset(load.at)
        self._at = load.at
        is_known = load.at - self._began_at >= self._short_window.seconds
        if load.demand or self._early_demand:
            demand, self._early_demand = load.demand + self._early_demand, 0
            if not is_known:
                # Demand counts once there is an average.
                self._early_demand, demand = demand, 0
            load = load._replace(demand=demand)
        self._short_window.add(load)
        self._latest.add(load)
        self._long_window.add(load)
        if not is_known:
            return None
        if not may_change:
            self._restart_cooldown(load.at)
            return None
        return self._decide_growth(load.at, size) or self._decide_reduction(load.at, size)

    def _decide_growth(self, now: float, size: int) -> Decision | None:
        candidates = [
            self._need_above(now, trigger, target, size) for trigger, target in self._targets.items()
        ]
        needs = [need for need in candidates if need is not None]
        if not needs:
            self._above_since = float("inf")
            return None
        self._above_since = min(self._above_since, now)
        _, workers, trigger, value, target = max(
            needs, key=lambda need: (need.workers, need.value / need.target)
        )
        if now - self._above_since < self._latest.seconds and self._is_rising(trigger):
            # The load is still rising, so the computed number would be too small.
            return None
        after = max(size, min(workers, self._max_workers))
        if after == size:
            was_limited = now - self._limited_at <= max(self._window, self._up)
            self._limited_at = now
            self._restart_cooldown(now)
            if was_limited:
                return None
            return Decision(size, size, trigger, value, target, self._short_window.seconds)
        if now - self._increased_at < self._up:
            return None
        if now - self._decreased_at < self._down * self._cooldown_factor:
            self._was_last_decrease_wrong = True
            self._cooldown_factor = min(self._cooldown_factor * 2, _MAX_COOLDOWN_FACTOR)
        self._increased_at = now
        self._restart_cooldown(now)
        return Decision(size, after, trigger, value, target, self._short_window.seconds)

    def _need_above(self, now: float, trigger: str, target: float, size: int) -> _Need | None:
        """The number of workers needed according to this trigger, if it is larger than `size`; else None."""
        if TRIGGERS[trigger].is_latency:
            # Without enough recent responses, use the whole window. Workers just started have not changed the latency
            # yet.
            window, value = self._short_window, self._short_window.value(trigger)
            if value is None:
                window, value = self._long_window, self._long_window.value(trigger)
            if value is None:
                return None
            if value <= target or window.least_ready() < size:
                return None
            return _Need(now, size + 1, trigger, value, target)
        short_total, latest_total = self._short_window.value(trigger), self._latest.value(trigger)
        if short_total is None or latest_total is None:
            return None
        demand = self._short_window.demand if TRIGGERS[trigger].counts_demand else 0
        latest_total += demand
        if min(short_total + demand, latest_total) <= target * size:
            return None
        return _Need(now, ceil(latest_total / target - _ROUNDING), trigger, latest_total / size, target)

    def _is_rising(self, trigger: str) -> bool:
        """Whether the latest samples are well above the samples before them."""
        if TRIGGERS[trigger].is_latency:
            return False
        latest, short = self._latest.value(trigger), self._short_window.value(trigger)
        return latest is not None and short is not None and short < _SHORT_WINDOW_SHARE_OF_TARGET * latest

    def _decide_reduction(self, now: float, size: int) -> Decision | None:
        if size <= self._min_workers:
            return None
        cooldown_seconds = max(self._down * self._cooldown_factor, self._short_window.seconds)
        needs = self._recent_needs
        current = [self._need(now, *trigger, size) for trigger in self._targets.items()]
        need = max(current, key=lambda candidate: candidate.workers)
        while needs and needs[-1].workers <= need.workers:
            needs.pop()
        needs.append(need)
        while needs[0].at < now - cooldown_seconds:
            needs.popleft()
        highest = needs[0]
        if highest.workers >= size or now - self._cooling_since < cooldown_seconds:
            return None
        if not self._was_last_decrease_wrong:
            self._cooldown_factor = max(self._cooldown_factor / 2, 1.0)
        self._decreased_at, self._was_last_decrease_wrong = now, False
        self._restart_cooldown(now)
        # Stop at most half of the workers, or only one with latency targets, which do not show how many are needed.
        step = 1 if self._has_latencies else max(size // 2, 1)
        after = max(highest.workers, self._min_workers, size - step)
        return Decision(size, after, highest.trigger, highest.value, highest.target, self._window)

    def _need(self, now: float, trigger: str, target: float, size: int) -> _Need:
        """Return the fewest workers that keep the figure of `trigger` below `target`, in the long and short window.

        For a latency, return 1 if it is below `target`, so that fewer workers may be tried; otherwise return `size`.
        """
        if TRIGGERS[trigger].is_latency:
            value, short_value = (
                self._long_window.value(trigger) or 0.0,
                self._short_window.value(trigger) or 0.0,
            )
            is_below = (
                value < target * _WINDOW_SHARE_OF_TARGET
                and short_value <= target
                and self._short_window.least_ready() >= size
            )
            return _Need(now, 1 if is_below else size, trigger, value, target)
        total, short_total = self._long_window.value(trigger), self._short_window.value(trigger)
        if total is None or short_total is None:
            return _Need(now, size, trigger, 0.0, target)
        needed = max(total / _WINDOW_SHARE_OF_TARGET, short_total / _SHORT_WINDOW_SHARE_OF_TARGET) / target
        workers = max(ceil(needed - _ROUNDING), 1)
        return _Need(now, workers, trigger, total / size, target)
