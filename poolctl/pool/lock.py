"""One lock for every pool of the process, safe over a fork.

What happens under it is a few dictionary operations, so that sharing it costs nothing; two pools that are merged into
each other cannot deadlock; and a fork holds it, so that a child never inherits it locked by a thread that it lacks.
"""

from __future__ import annotations

import os
import threading

LOCK = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
