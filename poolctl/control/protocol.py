"""Constants of the control protocol: its version, the verbs that change servers, and the option that checks an upgrade.

Separate from the module `answers`, because few commands need that module, and its import takes long.
"""

from __future__ import annotations

SCHEMA = 1
# The version of everything that two versions of poolctl exchange (see docs/architecture.md). Raise it with each change
# that the previous version does not understand: a pool with a lower number is not taken over.
PROTOCOL = 1
CHECK = "--check"  # makes another version's supervisor check whether it could run here

# Verbs that change servers. The supervisor completes them even if the caller stops waiting; features declare further
# ones (`Feature.changing`).
CHANGING_VERBS = frozenset(
    ("start", "stop", "restart", "reload", "scale", "signal", "drain", "undrain", "enable", "disable", "add", "remove")
)  # fmt: skip
