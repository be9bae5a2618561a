"""The tally: a page of memory on which a worker counts, and which its supervisor reads on request.

The worker only adds to integers; no message is sent, and no timer runs. The page is a file in memory that other
processes hold too, so that the counts outlive a worker that is killed. Behind the page that file has room for the
worker's stacks (see stack_dump), which takes no memory until they are written. Standard library only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from binascii import crc32

# The first slot names the layout of the others. A page with another number is not read by this version.
LAYOUT = int.from_bytes(b"poolctl\x01", "big")

STARTED = 1  # requests whose headers have arrived
DISCONNECTED = 2  # of those: without a complete response, because the client disconnected
BROKEN = 3  # of those: without a complete response, because the application failed
MALFORMED = 4  # input that was not a request
LATENCY_NS = (
    5  # the sum over all complete responses, from the headers of the request to the end of the response
)
CONNECTIONS = 6  # accepted, or handed over by another worker
OPEN_CONNECTIONS = 7
WEBSOCKETS = 8
OPEN_WEBSOCKETS = 9
STATUS = 10  # responses by the first digit of their status: slot 11 counts 1xx, slot 15 counts 5xx
BUCKETS = (
    16  # complete responses by latency: the first of BOUNDS_NS that it does not exceed; the last slot if none
)
BOUNDS_NS = tuple(
    int(milliseconds * 1_000_000)
    for milliseconds in (0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
)
COUNTED = BUCKETS + len(BOUNDS_NS) + 1  # the counted slots end here

# Only the newest heartbeat is kept; times are taken from the system's monotonic clock.
BEAT_ASKED_NS = 48  # when the supervisor asked; the supervisor writes this slot
BEAT_LAG_NS = 49  # how long after that the worker answered
BEAT_AT_NS = 50  # when it answered; 0 for a worker that does not answer heartbeats
_STACKS = 51  # 1 for a worker that writes its stacks when it is signalled
BEAT_CPU_NS = 52  # the processor time that its process had used when it answered

# From here on pairs of slots count requests by route: the mark of its alias, and the requests that were passed to the
# worker; or the mark for errors among these. A pair is allocated with the first request. The last pair is shared by
# routes that found no free pair.
ROUTES = 64

SIZE_BYTES = mmap.PAGESIZE
STACKS_AT, STACK_BYTES = SIZE_BYTES, 256 * 1024
_FILE_BYTES = STACKS_AT + STACK_BYTES
_PROMISED = (1).to_bytes(8, sys.byteorder)
_LAST_PAIR = SIZE_BYTES // 8 - 2
_OTHER_ROUTES = 1
_FIRST_MARK, _FIRST_OF_ERRORS, _MARKS_END = 1 << 32, 1 << 33, 1 << 34
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NOW = (OPEN_CONNECTIONS, OPEN_WEBSOCKETS)  # current values, which are not summed up

# An application can write its page. Readers believe it up to these limits: each number fits twice into a signed one of
# 64 bits, in which figures are kept; no worker counts faster than this; and no process has as many descriptors.
MOST = 2**62 - 1
MOST_PER_SECOND = 10_000_000
MOST_OPEN = 2**24

Counts = list[int]


def new_page() -> int:
    """The descriptor of an empty page."""
    fd = os.memfd_create("poolctl-tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, LAYOUT.to_bytes(8, "little"), 0)
    os.ftruncate(fd, _FILE_BYTES)
    # An application has it too: it must not be able to shrink the page under its readers or to grow it.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def is_page(fd: int) -> bool:
    """Whether the descriptor is such a page: reading it never blocks, and its size cannot change."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS and os.fstat(fd).st_size == _FILE_BYTES
    except OSError:
        return False


def map_page(fd: int) -> memoryview:
    """The page as writable integers; the descriptor may be closed afterwards."""
    return memoryview(mmap.mmap(fd, SIZE_BYTES)).cast("Q")


def read_page(fd: int) -> Counts | None:
    """The counts of a page, each at most MOST; None if the page has another layout."""
    content = os.pread(fd, SIZE_BYTES, 0)
    if len(content) < SIZE_BYTES:
        return None
    counts = memoryview(content).cast("Q").tolist()
    if counts[0] != LAYOUT:
        return None
    counts[0] = 0
    return counts if max(counts) <= MOST else [bounded(each) for each in counts]


def read_slot(fd: int, slot: int) -> int:
    """One number of a page, at most MOST; 0 if there is no such slot."""
    return bounded(int.from_bytes(os.pread(fd, 8, slot * 8), sys.byteorder))


def bounded(number: int) -> int:
    """The number, limited to MOST. It may have been written by an application, or be a sum of such numbers."""
    return min(number, MOST)


def why_impossible(counts: Counts, before: Counts, seconds: float) -> str:
    """The reason why no worker can have reached these counts from `before` in this time; "" if it can.

    Small steps back are possible: the response to a probe is counted, and subtracted a moment later.
    """
    most = int(MOST_PER_SECOND * (seconds + 1))
    for slot in range(1, COUNTED):
        number = counts[slot]
        # Of latencies nothing is impossible, as a response may take as long as the machine has been up.
        limit = MOST - 1 if slot == LATENCY_NS else MOST_OPEN if slot in _NOW else before[slot] + most
        if number > limit:
            return f"slot {slot} went from {before[slot]} to {number} within {seconds:.3g} s"
    return ""


def promise_stacks(fd: int) -> None:
    """Mark the page to show that the worker writes its stacks when signalled."""
    os.pwrite(fd, _PROMISED, _STACKS * 8)


def writes_stacks(fd: int) -> bool:
    """Whether the worker writes its stacks when signalled. A worker that has just been forked does not."""
    return os.pread(fd, 8, _STACKS * 8) == _PROMISED


def clear_stacks(fd: int) -> None:
    """Remove earlier stacks; new stacks begin at the file's position (see faulthandler)."""
    written = len(read_stacks(fd))
    os.pwrite(fd, bytes(min(written + 1, os.fstat(fd).st_size - STACKS_AT)), STACKS_AT)
    os.lseek(fd, STACKS_AT, os.SEEK_SET)


def read_stacks(fd: int) -> bytes:
    """The stacks that were written last, or b""."""
    return os.pread(fd, STACK_BYTES, STACKS_AT).partition(b"\0")[0]


def add(counts: Counts, more: Counts) -> None:
    """Add the counts of another worker of the same server to `counts`."""
    for slot in range(1, COUNTED):
        counts[slot] = bounded(counts[slot] + more[slot])


def route_mark(alias: str) -> int:
    """The number that stands for a route on a page."""
    return _FIRST_MARK | crc32(alias.encode())


def error_mark(alias: str) -> int:
    """The number that stands for the errors of a route on a page; versions without it ignore it."""
    return _FIRST_OF_ERRORS | crc32(alias.encode())


def route_slot(page: memoryview, alias: str) -> int:
    """The slot for the requests of this route; it stays the same for the life of the page."""
    if slot := _slot(page, route_mark(alias)):
        return slot
    page[_LAST_PAIR] = _OTHER_ROUTES
    return _LAST_PAIR + 1


def error_slot(page: memoryview, alias: str) -> int | None:
    """The slot for the errors of this route; None if the page has no room left."""
    return _slot(page, error_mark(alias))


def _slot(page: memoryview, mark: int) -> int | None:
    pairs = (_LAST_PAIR - ROUTES) // 2
    for step in range(pairs):
        slot = ROUTES + 2 * ((mark + step) % pairs)
        if page[slot] in (0, mark):
            page[slot] = mark
            return slot + 1
    return None


def passed(counts: Counts) -> dict[int, int]:
    """The number of requests that came through a gateway, by the marks of their routes."""
    return {mark: count for mark, count in by_route(counts).items() if is_of_requests(mark)}


def is_of_requests(mark: int) -> bool:
    """Whether the mark stands for a route's requests, rather than for its errors."""
    return mark < _FIRST_OF_ERRORS


def by_route(counts: Counts) -> dict[int, int]:
    """The numbers of requests that came through a gateway, and of errors among them, by their marks."""
    pairs = zip(counts[ROUTES::2], counts[ROUTES + 1 :: 2], strict=False)
    # Each is one of all requests and WebSockets too, whose numbers were checked.
    most = counts[STARTED] + counts[WEBSOCKETS] if counts else 0
    return {mark: min(count, most) for mark, count in pairs if 0 < mark < _MARKS_END}


def completed(counts: Counts) -> Counts:
    """The final counts of a worker that has exited, in which nothing is in progress or open."""
    left = [0, *counts[1:COUNTED]]
    left[DISCONNECTED] += in_flight(counts)
    for slot in _NOW:
        left[slot] = 0
    if any(counts[ROUTES:]):
        left += [*([0] * (ROUTES - COUNTED)), *counts[ROUTES:]]
    return left


def responses(counts: Counts) -> int:
    """The number of complete responses."""
    return sum(counts[BUCKETS:COUNTED])


def in_flight(counts: Counts) -> int:
    """The number of requests in progress."""
    return max(0, counts[STARTED] - responses(counts) - counts[DISCONNECTED] - counts[BROKEN])
