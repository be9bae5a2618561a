"""The tables of the comparison are those of the figures that are kept."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers import report

RESULTS = json.loads(report.RESULTS.read_text())


@pytest.mark.parametrize("path", report.pages(RESULTS), ids=lambda path: path.stem)
def test_tables_show_the_figures_that_are_kept(path: report.Path) -> None:
    for name, block in report.pages(RESULTS)[path].items():
        assert report.written(path, name) == block


def test_the_picture_shows_the_figures_that_are_kept() -> None:
    assert report.PICTURE.read_text() == report.picture(RESULTS)


def test_what_a_tool_cannot_do_and_what_it_never_did_differ() -> None:
    found = {
        "restart failed": 3,
        "restart requests": 1200,
        "crash seconds": None,
        "manager killed: servers that go on": 0,
    }
    text = report.losses({"managers": {"2": {"tool": found, "other": {}}}}, "2").splitlines()
    assert text[2] == "| tool | 3 of 1,200 | never | – | 0 | no server left |"
    assert text[3] == "| other | – | – | – | – | – |"
