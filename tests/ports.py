"""Ports for tests that may run at once: in one process, in several, as several users."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import socket
import struct

# Below the kernel's ephemeral ports, so that no outgoing connection takes one between choice and use, and
# below poolctl's own default port_range.
PORTS = range(11_000, 19_000)

# Every user can lock bytes of it, and nothing is left of the locks. They belong to the open file: those of a process
# would end when it closes another descriptor of /dev/null.
_CLAIMS = os.devnull
_FLOCK = "hhqqi4x"  # fcntl(2): type, whence, start, length, pid
_mine: set[int] = set()
# One descriptor for all claims: hundreds of ports are asked for under a limit of 256.
_file = os.open(_CLAIMS, os.O_RDWR | os.O_CLOEXEC)


def _lock(kind: int, port: int) -> None:
    fcntl.fcntl(_file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, port, 1, 0))


def _claim(port: int) -> bool:
    if port in _mine:
        return False
    try:
        _lock(fcntl.F_WRLCK, port)
    except OSError:
        return False
    _mine.add(port)
    return True


def _give_back(port: int) -> None:
    _mine.discard(port)
    _lock(fcntl.F_UNLCK, port)


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
        try:
            # Without SO_REUSEADDR, as a pool looks for automatic ports: connections in TIME_WAIT, left by the tests of
            # a process that has ended, count as use.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((host, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:  # else: no IPv6 here
                return False
    return True


def claim_port(count: int = 1) -> int:
    """A TCP port that is free now and that no other test process on this machine is given meanwhile; or the first of
    `count` in a row.

    The claim is a lock on that byte of /dev/null, which all of them share: gone with the process that holds it, and
    what it has forked.
    """
    for _ in range(1000):
        port = random.choice(PORTS)
        claimed = list(itertools.takewhile(_claim, range(port, port + count)))
        if len(claimed) == count and all(map(_is_free, claimed)):
            return port
        for each in claimed if count > 1 else ():
            _give_back(each)
    raise AssertionError("no free port found")
