"""What servers print, on its way to a terminal."""

from __future__ import annotations

import pytest

from poolctl.cli.log_rendering import terminal_text


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ("a\tb ü 漢字 👨‍👩‍👧 12\u00a0000", "a\tb ü 漢字 👨‍👩‍👧 12\u00a0000"),
        ("\x1b[32mINFO\x1b[0m ready", "\x1b[32mINFO\x1b[0m ready"),
        ("\x1b[1;38;5;9mred", "\x1b[1;38;5;9mred\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b]8;;http://x\x1b\\link", "\\x1b]8;;http://x\\x1b\\link"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("\rover\b\x00", "\\rover\\x08\\x00"),
        ("\x1bP+q544e\x1b\\", "\\x1bP+q544e\\x1b\\"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\x1b[32", "\\x1b[32"),
    ],
)  # fmt: skip
def test_colours_pass_and_other_control_characters_are_escaped(line: str, shown: str) -> None:
    assert terminal_text(line) == shown


def test_without_colours_they_are_left_out() -> None:
    assert terminal_text("\x1b[32mINFO\x1b[0m\x1b]0;t\x07", colours=False) == "INFO\\x1b]0;t\\x07"
