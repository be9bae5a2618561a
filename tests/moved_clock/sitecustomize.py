"""Lets the file that POOLCTL_MOVED_CLOCK names be the wall clock of supervisors: found in PYTHONPATH.

The file holds seconds since 1970. Time stands still until it is written again.
"""

import os
import sys

_FILE = os.environ.get("POOLCTL_MOVED_CLOCK", "")

if _FILE and "supervisor" in sys.orig_argv:
    from poolctl.clock import Clock

    def time(self: Clock) -> float:
        with open(_FILE) as file:
            return float(file.read())

    Clock.time = time  # type: ignore[method-assign]
