"""The fixture of a pool of real processes that must not complain."""

from tests.integration.processes.conftest import pool

__all__ = ["pool"]
