"""How many open files a pool needs, in its keeper as well as in its supervisor; both have the same limit."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolctl.config.model.server_keys import ServerKeys

# Kept free by the supervisor so that commands are answered even when all other descriptors are used up.
OPEN_FILES_RESERVE = 16
# An idle pool: its helpers, journal, log and clients.
OPEN_FILES_OF_POOL = 48 + OPEN_FILES_RESERVE
_OF_PAIR = 2
# Its control socket or NOTIFY_SOCKET, the page on which it counts, the pipe that takes its output. A keeper that has
# taken the place of another one, and is not its parent, has a pidfd of it as well, if there is room.
_OF_WORKER = 3
_OF_PROGRAM = 2
_OF_PROBE = 1
# When many are restarted, the others wait until there are free descriptors.
REPLACED_AT_ONCE = 16

RAISE_OPEN_FILES = (
    "raise the hard limit: ulimit -Hn in the shell, LimitNOFILE= of the unit, "
    "nofile in /etc/security/limits.conf"
)


def open_files_needed(servers: Iterable[tuple[ServerKeys, int]]) -> int:
    """The descriptors for these servers, each with so many workers; one that sleeps, with none, has its listener."""
    workers = 0
    total = OPEN_FILES_OF_POOL
    for server, count in servers:
        workers += count
        total += _listeners(server) + count * (_OF_PROGRAM if server.command else _OF_WORKER)
        if count and not server.command:
            total += _OF_PAIR
        if server.health.probed:
            total += _OF_PROBE
    return total + _OF_WORKER * min(workers, REPLACED_AT_ONCE)


def _listeners(server: ServerKeys) -> int:
    if server.job or server.binds_itself:
        return 0
    # One for each version of the protocol.
    return 2 if server.address.dual or server.address.host == "localhost" else 1
