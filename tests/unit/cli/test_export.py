"""Unit files: whatever a path or a value is spelled with, systemd reads back the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig
from poolctl.cli.commands.export import command, render, stop_seconds, text, unit_name, word

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def read_words(line: str) -> list[str]:
    """The words of a line as systemd.syntax(7) has them, `%%` being `%`; nothing else is forgiven."""
    assert "\n" not in line
    words: list[str] = []
    at = 0
    while at < len(line):
        found = ""
        if line[at] == '"':
            at += 1
            while line[at] != '"':
                if line[at] == "\\":
                    at += 1
                    if line[at] == "x":
                        found += chr(int(line[at + 1 : at + 3], 16))
                        at += 3
                        continue
                    found += _ESCAPED[line[at]]
                else:
                    found += line[at]
                at += 1
            at += 1
            assert at == len(line) or line[at] == " "
        else:
            while at < len(line) and line[at] != " ":
                assert line[at] not in "\"'\\\t"
                found += line[at]
                at += 1
        assert found.replace("%%", "").count("%") == 0
        words.append(found.replace("%%", "%"))
        at += 1
    return words


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_words_are_read_back_as_they_were(words: list[str]) -> None:
    assert read_words(" ".join(map(word, words))) == words


@given(st.lists(WORDS, max_size=3))
def test_arguments_hold_no_variable(arguments: list[str]) -> None:
    path, *read = read_words(command(["/usr/bin/pool$ctl", *arguments]))
    assert path == "/usr/bin/pool$ctl"
    assert [argument.replace("$$", "") for argument in read] == [each.replace("$", "") for each in arguments]
    assert [argument.replace("$$", "$") for argument in read] == arguments


@pytest.mark.parametrize("value", ["a\nb", " a", "a ", "a\\", "\x07"])
def test_a_line_that_cannot_be_written_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        text(value)


def test_a_percent_sign_is_no_specifier() -> None:
    assert text("/srv/50% off") == "/srv/50%% off"


def test_unit_name_has_allowed_characters_only() -> None:
    assert unit_name("poolctl-a b/ü.x") == "poolctl-a-b--.x"


def test_comments_stand_on_lines_of_their_own() -> None:
    assert render(["Made."], [("Unit", [("#", "why"), ("A", "b")])]) == "# Made.\n\n[Unit]\n# why\nA=b\n"


def server(name: str, port: int, drain: float, stop: float, *needs: str) -> ServerConfig:
    return ServerConfig(
        name=name, bind=f"127.0.0.1:{port}", app="a:b", drain_timeout=drain, stop_timeout=stop, depends_on=list(needs)
    )  # fmt: skip


def test_stop_times_add_up_along_dependencies_only() -> None:
    web, db, other = server("web", 81, 30, 10, "db"), server("db", 82, 20, 5), server("other", 83, 50, 1)
    margin = stop_seconds([])
    assert margin >= 10
    assert stop_seconds([web, db, other]) == 65 + margin
    assert stop_seconds([db, other]) == 51 + margin
    # The gateway stops after them.
    assert stop_seconds([db, other], 20.0) == 71 + margin
