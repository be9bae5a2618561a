"""Settings for every unit test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.examples import examples

# How long an example takes says more about what else the machine does than about the code: 200 ms for each, and one
# second for making the first ten, were too little beside a few busy processes.
settings.register_profile("any machine", examples(100, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile("any machine")
