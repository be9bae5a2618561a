"""The fixtures with which commands are called in this process."""

from tests.unit.cli.conftest import directory, poolctl, supervised

__all__ = ["directory", "poolctl", "supervised"]
