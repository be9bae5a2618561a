"""What can be said of latencies of which only the buckets are known."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(bounds: Sequence[float], buckets: Sequence[int], q: float) -> float | None:
    """The latency that the share `q` (from 0 to 1) does not exceed, in the unit of `bounds`; None without any.

    As Prometheus does it: evenly spread within a bucket. What is above the last bound counts as that.
    """
    total = sum(buckets)
    if not total:
        return None
    rank, below, lower = q * total, 0, 0.0
    for bound, count in zip(bounds, buckets, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * max(0.0, rank - below) / count
        below += count
        lower = bound
    return lower
