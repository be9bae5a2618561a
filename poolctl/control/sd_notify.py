"""Notifications to systemd, or to any other service manager that set NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOCKET_VARIABLE = "NOTIFY_SOCKET"
READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"
# The delay before another attempt if too many descriptors are in flight (unix(7)).
_IN_FLIGHT_SECONDS = 0.002


def enabled(env: Mapping[str, str]) -> bool:
    """Whether a service manager wants notifications."""
    return bool(env.get(SOCKET_VARIABLE))


def is_main(env: Mapping[str, str]) -> bool:
    """Whether this is the process that systemd started; True where SYSTEMD_EXEC_PID is not set (systemd.exec(5))."""
    return env.get("SYSTEMD_EXEC_PID", str(os.getpid())) == str(os.getpid())


def notify(
    env: Mapping[str, str], *lines: str, fds: Sequence[int] = (), timeout_seconds: float = 0.0
) -> bool:
    """Send `lines`, such as READY, and descriptors as one message; return whether it was sent. Never raises.

    Blocks while the service manager has no room for the message, but no longer than the timeout.
    """
    name = env.get(SOCKET_VARIABLE, "")
    if name[:1] not in ("/", "@"):
        return False
    path = f"\0{name[1:]}" if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_seconds)
            message = "\n".join(lines).encode(errors="replace")
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            deadline = time.monotonic() + timeout_seconds
            while True:
                try:
                    sock.sendmsg([message], ancillary, 0, path)
                    return True
                except OSError as error:
                    if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                        return False
                time.sleep(_IN_FLIGHT_SECONDS)
    except (OSError, ValueError):
        return False


def reloading() -> tuple[str, str]:
    """The lines that announce a reload; READY=1 announces its end."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def status(text: str) -> str:
    """The line that shows `text` in `systemctl status`."""
    return f"STATUS={' '.join(text.split())}"


def watchdog_seconds(env: Mapping[str, str]) -> float:
    """The interval at which systemd expects watchdog notifications; 0 if it expects none (sd_watchdog_enabled(3))."""
    text = env.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isdecimal() else 0.0
