"""The shop's database: a file, so that the example needs nothing else. On a cluster it is on a volume of all pods."""

import os
import sqlite3


def connect() -> sqlite3.Connection:
    """A connection that waits for others, and commits each statement."""
    return sqlite3.connect(os.environ["DATABASE"], timeout=30, isolation_level=None)
