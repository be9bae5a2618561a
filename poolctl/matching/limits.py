"""The time limit of matching, and the error for an expression that exceeds it."""

from __future__ import annotations

# CPU time, so that load on the machine does not count; a usual expression takes microseconds.
LIMIT_SECONDS = 0.25
SLOW = f"the regular expression takes more than {LIMIT_SECONDS:g} s"
FASTER = "avoid repeats within repeats, such as (a+)+, and alternatives that begin alike"
