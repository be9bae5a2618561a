"""How long matching may take, and what is said of an expression that takes longer."""

from __future__ import annotations

# Of processor time, so that a busy machine makes no expression slow; a usual one takes microseconds.
LIMIT_SECONDS = 0.25
SLOW = f"the regular expression takes more than {LIMIT_SECONDS:g} s"
FASTER = "avoid repeats within repeats, such as (a+)+, and alternatives that begin alike"
