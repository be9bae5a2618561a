"""`imported(text, name)`: the file as `poolctl import` understands it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poolctl.cli.main import main


class Imported(NamedTuple):
    code: int
    text: str
    err: str

    @property
    def servers(self) -> dict[str, dict[str, Any]]:
        """The tables of the servers, by name."""
        tables = tomllib.loads(self.text).get("server", [])
        return {table.pop("name"): table for table in tables}

    @property
    def remarks(self) -> list[str]:
        """The comments, without the first one."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("# ")][1:]


Import = Callable[..., Imported]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Import:
    """What `poolctl import` prints for a file with this text, or for a command line; the text is valid.

    `others` names further files in the same directory.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POOLCTL_CONFIG", raising=False)

    def run(text: str, name: str = "", *others: str, valid: bool = True) -> Imported:
        words = ["--", *text.split()] if not name else [name, *others]
        if name:
            (tmp_path / name).write_text(text)
        capsys.readouterr()
        said = Imported(main(["import", *words]), *capsys.readouterr())
        if valid:
            assert said.code == 0, said
            assert_valid(tmp_path, said.text)
        return said

    return run


def assert_valid(directory: Path, text: str) -> None:
    from poolctl.config import load, required_variables

    path = str(directory / "pool.toml")
    config = load(path, dict.fromkeys(required_variables(text), "1"), {path: text})
    assert [str(problem) for problem in config.problems] == []
    assert len(config) > 0
