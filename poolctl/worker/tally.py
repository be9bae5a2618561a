"""What a worker counts, in a page of memory that its supervisor reads when somebody asks.

The worker adds to integers and nothing else; no message is sent, and nothing ticks. The page is a file in memory that
others hold as well, so that what was counted outlives a worker that is killed. Standard library only.
"""

from __future__ import annotations

import fcntl
import mmap
import os

# The first slot says what the others are. Another layout is another number, and is not read by this version.
LAYOUT = int.from_bytes(b"poolctl\x01", "big")

STARTED = 1  # requests whose headers have come
DISCONNECTED = 2  # of those: without a whole response, because the client went away
BROKEN = 3  # of those: without a whole response, because the application failed
MALFORMED = 4  # what came and was no request
LATENCY_NS = 5  # the sum over all whole responses, from the headers of the request to their end
CONNECTIONS = 6  # accepted, or taken over from another worker
OPEN_CONNECTIONS = 7
WEBSOCKETS = 8
OPEN_WEBSOCKETS = 9
STATUS = 10  # responses by the first digit of their status: 11 are those of 1xx, 15 those of 5xx
BUCKETS = 16  # whole responses by their latency: the first of BOUNDS_NS that it does not exceed, or none
BOUNDS_NS = tuple(
    int(milliseconds * 1_000_000)
    for milliseconds in (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
)
COUNTED = BUCKETS + len(BOUNDS_NS) + 1  # the slots that are counted end here

# The heartbeat, of which only the newest counts; times are of the system's monotonic clock.
BEAT_ASKED_NS = 48  # when the supervisor asked: its own slot
BEAT_LAG_NS = 49  # how long after that the worker answered
BEAT_AT_NS = 50  # when it answered; 0 for one that knows of no heartbeat

SIZE_BYTES = mmap.PAGESIZE
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NOW = (OPEN_CONNECTIONS, OPEN_WEBSOCKETS)  # what is true of this moment, and adds up to nothing

Counts = list[int]


def new_page() -> int:
    """The descriptor of a page on which nothing is counted yet."""
    fd = os.memfd_create("poolctl-tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, LAYOUT.to_bytes(8, "little"), 0)
    os.ftruncate(fd, SIZE_BYTES)
    # An application has it too, and may neither take it away from under its readers nor fill the memory with it.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def is_page(fd: int) -> bool:
    """Whether this is such a page: reading it never blocks, and its size cannot change."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS and os.fstat(fd).st_size == SIZE_BYTES
    except OSError:
        return False


def map_page(fd: int) -> memoryview:
    """The page as integers, to be counted on; the descriptor is needed no more."""
    return memoryview(mmap.mmap(fd, SIZE_BYTES)).cast("Q")


def blank_page() -> memoryview:
    """A page that nobody reads."""
    return memoryview(bytearray(SIZE_BYTES)).cast("Q")


def read_page(fd: int) -> Counts | None:
    """What has been counted so far; None for a page of another layout."""
    content = os.pread(fd, SIZE_BYTES, 0)
    if len(content) < SIZE_BYTES:
        return None
    counts = memoryview(content).cast("Q")
    return counts.tolist() if counts[0] == LAYOUT else None


def add(counts: Counts, more: Counts) -> None:
    """Add to `counts` what another worker of the same server has counted."""
    for slot in range(1, COUNTED):
        counts[slot] += more[slot]


def completed(counts: Counts) -> Counts:
    """What is left of the counts when their worker has ended: what was under way is lost, and nothing is open."""
    left = [0, *counts[1:COUNTED]]
    left[DISCONNECTED] += in_flight(counts)
    for slot in _NOW:
        left[slot] = 0
    return left


def responses(counts: Counts) -> int:
    """How many whole responses there were."""
    return sum(counts[BUCKETS:COUNTED])


def in_flight(counts: Counts) -> int:
    """How many requests are being answered."""
    return max(0, counts[STARTED] - responses(counts) - counts[DISCONNECTED] - counts[BROKEN])
