"""Settings for every unit test."""

import tests.examples  # noqa: F401 # the examples of properties
