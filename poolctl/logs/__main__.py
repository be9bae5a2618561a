"""`logs [DIRECTORY]`: the logger (see logger_process), with orders on descriptor 3; new pools find it in DIRECTORY."""

from __future__ import annotations

import signal
import socket
import sys

from poolctl.platform import name_process, raise_descriptor_limit

from .logger_process import Logger

CONTROL_DESCRIPTOR = 3


def main() -> None:
    """Serve the socket on descriptor 3 until it ends.

    Signals that end a group or a session are ignored, because the servers' last output comes later.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    name_process("poolctl-logger")
    raise_descriptor_limit()
    directory = sys.argv[1] if len(sys.argv) > 1 else None
    Logger(socket.socket(fileno=CONTROL_DESCRIPTOR), directory).run()
