"""Bytes become keys, and frames become bytes; the terminal is always as before afterwards."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
import termios
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from poolctl.features.top._terminal import KeyDecoder, Pasted, Screen


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"aZ/", ["a", "Z", "/"]),
        (b"\x1b[A\x1bOB\x1b[5~\x1b[6~", ["up", "down", "page up", "page down"]),
        (b"\x1b[H\x1b[4~\x1bOF", ["home", "end", "end"]),
        (b"\r\x7f\t\x0c", ["enter", "backspace", "tab", "redraw"]),
        ("ä✗".encode(), ["ä", "✗"]),
        (b"\x1b\x1b[A", ["escape", "up"]),
        (b"\x00\x1f", []),
    ],
)
def test_a_key_has_a_name(data: bytes, keys: list[str]) -> None:
    assert KeyDecoder().feed(data) == keys


def test_escape_alone_is_a_key_once_nothing_follows() -> None:
    keys = KeyDecoder()
    assert keys.feed(b"\x1b") == []
    assert keys.pending_seconds == 0.05
    assert keys.flush() == ["escape"]
    assert keys.pending_seconds is None


# Answers of terminals (xterm's control sequences), Alt with a character, unknown keys, and the mouse.
NO_KEYS = [
    b"\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\", b"\x1b]11;rgb:1e1e/1e1e/1e1e\x07", b"\x1b]52;c;cmVzdGFydA==\x07",
    b"\x1bP>|XTerm(380)\x1b\\", b"\x1bP1+r544e=787465726d\x1b\\", b"\x1b_Gi=31;OK\x1b\\", b"\x1b[?64;1;22c",
    b"\x1b[>0;276;0c", b"\x1b[?2026;2$y", b"\x1b[24;80R", b"\x1b[?997;1n", b"\x1b[I", b"\x1b[1;5C", b"\x1b[15~",
    b"\x1bOr", b"\x1bq", b"\x1br", "\x1bé".encode(), b"\x1b\r", b"\x1b[Mrrr", b"\x1b[<35;10;5M", b"\x1b[[A",
    b"\x1b]0;cancelled\x18", b"\x1b[200~r\r+y\x1b[A\x1b]\x1b[201\x1b[201~",
]  # fmt: skip


def typed(keys: list[str]) -> list[str]:
    return [key for key in keys if not isinstance(key, Pasted)]


@pytest.mark.parametrize("sent", NO_KEYS)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_what_a_terminal_sends_by_itself_is_no_key(sent: bytes, at: int) -> None:
    keys = KeyDecoder()
    assert typed(keys.feed(sent[:at])) == typed(keys.feed(sent[at:])) == []
    assert keys.pending_seconds is None
    assert keys.feed(b"r\x1b[A") == ["r", "up"]


def test_an_answer_that_never_ends_is_given_up_after_a_while() -> None:
    keys = KeyDecoder()
    assert keys.feed(b"\x1b]11;rgb:") == []
    assert keys.pending_seconds == 2.0
    assert keys.flush() == []
    assert keys.feed(b"r") == ["r"]


def test_a_sequence_that_another_one_interrupts_is_no_key() -> None:
    assert KeyDecoder().feed(b"\x1b]11;r\x1b[Ar") == ["up", "r"]
    assert KeyDecoder().feed(b"\x1b[12\x1b[Bs") == ["down", "s"]


def test_pasted_text_is_marked_until_it_ends() -> None:
    keys = KeyDecoder()
    found = keys.feed("\x1b[200~é\n+".encode()) + keys.feed(b"\x1b[2") + keys.feed(b"01~s")
    assert found == ["é", "+", "s"]
    assert [isinstance(key, Pasted) for key in found] == [True, True, False]


KEYS = [b"\x1b[A", b"\x1bOF", b"\x1b[5~", b"x", "é".encode(), b"\r"]


@given(st.lists(st.sampled_from(KEYS)))
def test_a_sequence_may_come_in_pieces(sent: list[bytes]) -> None:
    data = b"".join(sent)
    keys = KeyDecoder()
    assert [key for at in range(len(data)) for key in keys.feed(data[at : at + 1])] == KeyDecoder().feed(data)


@given(st.lists(st.sampled_from(KEYS + NO_KEYS)))
def test_only_keys_are_keys_in_whatever_order_they_come(sent: list[bytes]) -> None:
    data = b"".join(sent)
    found = KeyDecoder().feed(data)
    assert typed(found) == KeyDecoder().feed(b"".join(each for each in sent if each in KEYS))


@given(st.binary(max_size=40))
def test_no_bytes_break_it(data: bytes) -> None:
    keys = KeyDecoder()
    keys.feed(data)
    keys.flush()
    assert keys.feed(b"\x1b[A")[-1:] in (["up"], [])


class Pty:
    """A pseudo-terminal whose program side is standard input and output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.person, self.program = pty.openpty()
        os.set_blocking(self.person, False)
        self.resize(40, 6)

    @contextlib.contextmanager
    def screen(self, encoding: str = "utf-8") -> Iterator[Screen]:
        """The screen on this terminal, within a test: pytest captures these files before it."""
        with (
            open(self.program, encoding=encoding, closefd=False) as stdin,
            open(self.program, "w", encoding=encoding, closefd=False) as stdout,
            self._monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            with Screen() as screen:
                yield screen

    def resize(self, columns: int, lines: int) -> None:
        termios.tcsetwinsize(self.program, (lines, columns))

    def shown(self) -> str:
        """What has arrived since the last time."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.person, 65536):
                data += piece
        return data.decode()

    @property
    def modes(self) -> int:
        """The local modes of the terminal: echo, whole lines."""
        return int(termios.tcgetattr(self.program)[3])

    def close(self) -> None:
        os.close(self.person)
        with contextlib.suppress(OSError):
            os.close(self.program)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pty]:
    made = Pty(monkeypatch)
    yield made
    made.close()


def lines(*texts: str) -> list[Text]:
    return [Text(each) for each in texts]


def test_terminal_has_keys_at_once_without_echo_and_is_as_before_afterwards(terminal: Pty) -> None:
    before = terminal.modes
    with terminal.screen() as screen:
        assert repr(screen) == "<Screen of 40x6>"
        assert not terminal.modes & (termios.ECHO | termios.ICANON)
        assert terminal.shown() == "\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[2J"
        os.write(terminal.person, b"x")
        assert screen.read() == b"x"
        assert screen.fileno() == terminal.program
    assert terminal.modes == before
    assert terminal.shown() == "\x1b[?2004l\x1b[?25h\x1b[?1049l"
    screen.restore_terminal()
    assert terminal.shown() == "", "it was given back already"


def test_only_changed_lines_are_sent(terminal: Pty) -> None:
    with terminal.screen() as screen:
        terminal.shown()
        screen.draw(lines("one", "two"))
        first = terminal.shown()
        assert first.startswith(
            "\x1b[?2026h\x1b[2J\x1b[1;1H\x1b[0m\x1b[2Kone\x1b[2;1H\x1b[0m\x1b[2Ktwo\x1b[3;1H"
        )
        assert first.endswith("\x1b[6;1H\x1b[0m\x1b[2K\x1b[?2026l")
        screen.draw(lines("one", "two"))
        assert terminal.shown() == ""
        screen.draw(lines("one", "2"))
        assert terminal.shown() == "\x1b[?2026h\x1b[2;1H\x1b[0m\x1b[2K2\x1b[?2026l"
        screen.resize()
        screen.draw(lines("one", "2"))
        assert "\x1b[2J" in terminal.shown(), "everything is drawn again"


def test_frame_is_cut_to_the_size_of_the_terminal(terminal: Pty) -> None:
    with terminal.screen() as screen:
        terminal.resize(24, 5)
        screen.resize()
        assert (screen.width, screen.height) == (24, 5)
        terminal.shown()
        screen.draw(lines("x" * 100, *map(str, range(9))))
        shown = terminal.shown()
        assert "x" * 24 in shown
        assert "x" * 25 not in shown
        assert "3\x1b[?2026l" in shown
        assert "\x1b[6;1H" not in shown
        terminal.resize(1, 1)
        screen.resize()
        assert (screen.width, screen.height) == (20, 5), "less cannot be used"


def test_terminal_that_takes_no_output_keeps_the_rest_of_a_frame(terminal: Pty) -> None:
    with terminal.screen() as screen:
        terminal.resize(2000, 100)
        screen.resize()
        screen.draw(lines(*["x" * 2000] * 100))
        assert screen.unsent
        rest = len(screen.unsent)
        screen.draw(lines("other"))
        assert len(screen.unsent) == rest, "the frame before is not complete"
        shown = ""
        while screen.unsent:
            shown += terminal.shown()
            screen.flush()
        shown += terminal.shown()
        assert shown.count("x" * 2000) == 100
        assert "other" not in shown


def test_terminal_that_is_gone_ends_the_view_without_an_error(terminal: Pty) -> None:
    with terminal.screen() as screen:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, terminal.program)
        os.close(null)
        assert screen.read() == b""
        screen.output = terminal.program  # /dev/null, which has no size
        screen.resize()
        assert (screen.width, screen.height) == (80, 24)


def test_terminal_without_utf_8_gets_plain_characters(terminal: Pty) -> None:
    with terminal.screen("latin-1") as screen:
        terminal.shown()
        screen.draw(lines("● ok ▴"))
        assert "* ok ^" in terminal.shown()
