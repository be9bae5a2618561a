"""Counts of servers in words."""

from __future__ import annotations


def servers(count: int, of: int | None = None) -> str:
    """`3 servers`, `1 server`, `2 of 3 servers`."""
    if of is not None and count != of:
        return f"{count} of {of} server{'' if of == 1 else 's'}"
    return f"{count} server{'' if count == 1 else 's'}"
