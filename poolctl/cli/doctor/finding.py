"""What one check came to."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """`check` is what was looked at, `mend` what to do if it is not ok."""

    check: str
    status: str
    message: str
    mend: str = ""

    def __repr__(self) -> str:
        return f"{self.status} {self.check}: {self.message}" + (f" ({self.mend})" if self.mend else "")


def ok(check: str, message: str) -> Finding:
    """It is as it should be."""
    return Finding(check, OK, message)


def warning(check: str, message: str, mend: str) -> Finding:
    """It may become a problem."""
    return Finding(check, WARNING, message, mend)


def problem(check: str, message: str, mend: str) -> Finding:
    """It keeps servers from starting, or from serving as they should."""
    return Finding(check, PROBLEM, message, mend)
