"""How many examples a property is tested with, and which.

`make properties` tests with all of them, others each time. Elsewhere a quarter of them is tried, always the same: a
test that passes goes on passing until the code changes.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

ALL = os.environ.get("POOLCTL_EXAMPLES") == "all"
MIN_COUNT = 10


def examples(count: int, **options: Any) -> settings:
    """The settings of a property for which `count` examples are all."""
    return settings(
        max_examples=count if ALL else max(count // 4, MIN_COUNT),
        deadline=None,
        derandomize=not ALL,
        **options,
    )


# How long an example takes says more about what else the machine does than about the code: 200 ms for each, and one
# second for making the first ten, were too little beside a few busy processes.
settings.register_profile("any machine", examples(100, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile("any machine")
