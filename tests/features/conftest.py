"""The fixtures with which commands are called in this process, and the examples of properties."""

import contextlib

from tests.unit.cli.conftest import directory, poolctl, supervised

with contextlib.suppress(ModuleNotFoundError):  # hypothesis, on a plain installation
    import tests.examples  # noqa: F401

__all__ = ["directory", "poolctl", "supervised"]
