"""A prefork run after an application was imported leaves nothing behind and prints nothing."""

from __future__ import annotations

import logging

import pytest
import uvicorn

from poolctl.worker.fork_safety import ProcessSnapshot
from poolctl.worker.preload import prefork_run_again


class Lines(logging.Handler):
    """What an application's own handler is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_prefork_run_logs_nothing_and_leaves_logging_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, logger = Lines(), logging.getLogger("uvicorn.error")
    monkeypatch.setattr(logger, "handlers", [ours])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    prefork_run_again()
    logger.error("afterwards")
    assert ours.lines == ["afterwards"]


def test_prefork_run_leaves_nothing_in_the_process() -> None:
    prefork_run_again()  # what libuv keeps for good is there from now on
    before = ProcessSnapshot.of_this_process()
    prefork_run_again()
    assert before.left_since() == ""


def test_prefork_run_ignores_a_uvicorn_that_the_application_has_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: uvicorn.Config) -> None:
        raise RuntimeError("patched")

    monkeypatch.setattr(uvicorn.Config, "load", broken)
    prefork_run_again()
