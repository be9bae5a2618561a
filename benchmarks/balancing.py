"""The gateway's cost of choosing a backend for a request and recording its result, without input and output."""

from __future__ import annotations

import gc
import time
from argparse import Namespace
from collections.abc import Iterator

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.backends.route_backends import Lease, RequestOutcome
from poolctl.routing.route import POLICIES, Route, Target, TrafficLimits

from .report import Row

BACKENDS = 3
REQUESTS = 20_000
MOST_MICROSECONDS = 3.0
_LIMITS = {
    "limit": TrafficLimits(concurrency=100, queue=100),
    "backend_limit": TrafficLimits(requests_per_second=1e9),
}


def run(options: Namespace) -> Iterator[Row]:
    requests, repeat = REQUESTS // (20 if options.quick else 1), 3 * options.repeat
    cases = {policy: {"policy": policy} for policy in POLICIES} | {"round-robin, with limits": _LIMITS}
    for what, keys in cases.items():
        samples = [_microseconds(requests, keys) for _ in range(repeat)]
        most = MOST_MICROSECONDS if what == "round-robin" else None
        yield Row(f"acquire and release one of {BACKENDS} backends ({what})", "µs", samples, most=most)


def _microseconds(requests: int, keys: dict[str, object]) -> float:
    """The processor time of one request."""
    backends = Backends(HostStates(time.monotonic), time.monotonic)
    targets = tuple(Target(url=f"http://10.0.0.{number}:80") for number in range(1, BACKENDS + 1))
    route = Route(**{"alias": "web", "to": targets, **keys})  # type: ignore[arg-type]
    gc.collect()
    began = time.process_time()
    for _ in range(requests):
        lease = backends.of(route).acquire("10.1.2.3")
        assert isinstance(lease, Lease)
        lease.release(RequestOutcome.ANSWERED, 0.01, 200)
    return 1e6 * (time.process_time() - began) / requests
