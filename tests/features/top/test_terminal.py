"""Bytes become keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.top._terminal import Keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"aZ/", ["a", "Z", "/"]),
        (b"\x1b[A\x1bOB\x1b[5~\x1b[6~", ["up", "down", "page up", "page down"]),
        (b"\x1b[H\x1b[4~\x1bOF", ["home", "end", "end"]),
        (b"\r\x7f\t\x0c", ["enter", "backspace", "tab", "redraw"]),
        ("ä✗".encode(), ["ä", "✗"]),
        (b"\x1b[200~x\x1b[1;5C", ["x"]),
        (b"\x1b\x1b[A", ["escape", "up"]),
        (b"\x1bq", ["escape", "q"]),
        (b"\x00\x1f", []),
    ],
)
def test_a_key_has_a_name(data: bytes, keys: list[str]) -> None:
    assert Keys().feed(data) == keys


def test_escape_alone_is_a_key_once_nothing_follows() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b") == []
    assert keys.pending
    assert keys.flush() == ["escape"]
    assert not keys.pending


@given(st.lists(st.sampled_from([b"\x1b[A", b"\x1bOF", b"\x1b[5~", b"x", "é".encode(), b"\r"])))
def test_a_sequence_may_come_in_pieces(sent: list[bytes]) -> None:
    data = b"".join(sent)
    keys = Keys()
    assert [key for at in range(len(data)) for key in keys.feed(data[at : at + 1])] == Keys().feed(data)


@given(st.binary(max_size=40))
def test_no_bytes_break_it(data: bytes) -> None:
    keys = Keys()
    keys.feed(data)
    keys.flush()
    assert keys.feed(b"\x1b[A")[-1:] in (["up"], [])
