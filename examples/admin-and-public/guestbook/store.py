"""The entries, in a database that both interfaces open."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator


@contextlib.contextmanager
def entries() -> Iterator[sqlite3.Connection]:
    """The open database; changes are committed."""
    connection = sqlite3.connect(os.environ["GUESTBOOK"], timeout=5)
    try:
        with connection:
            connection.execute(
                "create table if not exists entry (id integer primary key, text text not null)"
            )
            yield connection
    finally:
        connection.close()
