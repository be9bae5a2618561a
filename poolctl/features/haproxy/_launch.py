"""Runs a program that gets SIGUSR1 when its parent exits (prctl(2), PR_SET_PDEATHSIG).

Called as `_launch.py PARENT PROGRAM …`. This is a separate script, because code that runs between fork and exec may
hang in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Execute the program in place of this process, unless the parent has already exited."""
    parent, *argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
