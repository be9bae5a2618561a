"""A life rehearsed in a process that an application has been imported in: nobody sees or hears of it."""

from __future__ import annotations

import logging

import pytest
import uvicorn

from poolctl.worker.sharing.rehearse import rehearse_again
from poolctl.worker.sharing.traces import Traces


class Lines(logging.Handler):
    """What an application's own handler is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_the_applications_log_says_nothing_of_it_and_goes_on_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, logger = Lines(), logging.getLogger("uvicorn.error")
    monkeypatch.setattr(logger, "handlers", [ours])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    rehearse_again()
    logger.error("afterwards")
    assert ours.lines == ["afterwards"]


def test_nothing_of_it_is_left() -> None:
    rehearse_again()  # what libuv keeps for good is there from now on
    before = Traces.of_this_process()
    rehearse_again()
    assert before.left_since() == ""


def test_an_application_that_has_broken_uvicorn_hears_of_it_from_its_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(self: uvicorn.Config) -> None:
        raise RuntimeError("patched")

    monkeypatch.setattr(uvicorn.Config, "load", broken)
    rehearse_again()
