"""Runs the command as `python -m poolctl`."""

from __future__ import annotations

import sys

from poolctl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
