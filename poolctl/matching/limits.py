"""How long matching may take."""

from __future__ import annotations

# Of processor time, so that a busy machine makes no expression slow; a usual one takes microseconds.
LIMIT_SECONDS = 0.25
