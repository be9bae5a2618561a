"""A load generator that never tries again: every request that was sent and got no complete answer is counted.

`Load` starts it as a process of its own, `python -m tests.load` runs it by hand, `apps` are what it asks.
"""

from .load import Load
from .report import Report

__all__ = ["Load", "Report"]
