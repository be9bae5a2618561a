"""Limits of configurations and of the machine, and libraries of extras."""

from __future__ import annotations

# Limits are defined here so that their users need not import pydantic.
MOST_WORKERS = 10_000
LONGEST_SOCKET_PATH_BYTES = 107
# Open files kept free by the supervisor so that commands are answered even when all other descriptors are used up.
OPEN_FILES_RESERVE = 16
# The open files of an idle pool: its helpers, journal, log and clients.
OPEN_FILES_OF_POOL = 48 + OPEN_FILES_RESERVE
RAISE_OPEN_FILES = (
    "raise the hard limit: ulimit -Hn in the shell, LimitNOFILE= of the unit, "
    "nofile in /etc/security/limits.conf"
)
# Needed only by the gateway's process.
GATEWAY_LIBRARIES = ("httptools", "uvloop")
INSTALL_GATEWAY = "pip install 'poolctl[gateway]'"
