"""Ports for tests that may run at once: in one process, in several, as several users."""

from __future__ import annotations

import errno
import random
import socket

# Below the kernel's ephemeral ports, so that no outgoing connection takes one between choice and use, and
# below poolctl's own default port_range.
PORTS = range(11_000, 19_000)

_claims: list[socket.socket] = []


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:  # else: no IPv6 here
                return False
    return True


def claim_port() -> int:
    """A TCP port that is free now and that no other test process on this machine is given meanwhile.

    The claim is an abstract Unix socket of that number: exclusive between processes and users of one network
    namespace, as ports are, and gone with the process that holds it.
    """
    for _ in range(1000):
        port = random.choice(PORTS)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0poolctl-test-port-{port}")
        except OSError:
            claim.close()
            continue
        if _is_free(port):
            _claims.append(claim)
            return port
        claim.close()
    raise AssertionError("no free port found")
