"""How many examples a property is tested with: all of them by `make properties`, a quarter of them elsewhere."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

ALL = os.environ.get("POOLCTL_EXAMPLES") == "all"
FEWEST = 10


def examples(count: int, **options: Any) -> settings:
    """The settings of a property for which `count` examples are all."""
    return settings(max_examples=count if ALL else max(count // 4, FEWEST), deadline=None, **options)
