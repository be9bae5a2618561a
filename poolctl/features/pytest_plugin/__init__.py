"""The pytest plugin: fixtures with running pools. pytest imports `plugin` in every run, `pools` on first use."""

from poolctl.feature import Feature

FEATURE = Feature(package=__name__)
