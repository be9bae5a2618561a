"""What is wanted of a pool outlives keeper and supervisor, and no start of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poolctl.keeper import rendezvous


def test_what_was_kept_last_is_left_until_it_is_forgotten(tmp_path: Path) -> None:
    assert rendezvous.read_desired(str(tmp_path)) == {}
    rendezvous.write_desired(str(tmp_path), b'{"servers": {}}')
    rendezvous.write_desired(str(tmp_path), b'{"servers": {"web": {"count": 2}}}')
    assert rendezvous.read_desired(str(tmp_path)) == {"servers": {"web": {"count": 2}}}
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    rendezvous.remove_desired(str(tmp_path))
    rendezvous.remove_desired(str(tmp_path))
    assert rendezvous.read_desired(str(tmp_path)) == {}
    assert list(tmp_path.iterdir()) == []


def test_after_a_start_of_the_machine_nothing_is_left(tmp_path: Path) -> None:
    rendezvous.write_desired(str(tmp_path), b'{"servers": {}}')
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    boot, first = written["life"]
    for another in (["0-0", first], [boot, first + 1]):
        path.write_text(json.dumps({**written, "life": another}))
        assert rendezvous.read_desired(str(tmp_path)) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"life": 1', '{"life": null, "left": {}}', "\xff"])
def test_what_cannot_be_read_is_as_good_as_nothing(tmp_path: Path, text: str) -> None:
    rendezvous.write_desired(str(tmp_path), b"{}")
    (path,) = tmp_path.iterdir()
    path.write_bytes(text.encode("latin-1"))
    assert rendezvous.read_desired(str(tmp_path)) == {}
