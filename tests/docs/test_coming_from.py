"""What is said to those who come from other tools is configuration, and keys that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poolctl.config import PoolConfig

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_each_example_is_valid(tmp_path: Path, text: str) -> None:
    (tmp_path / "pool.toml").write_text(text)
    config = PoolConfig.load(tmp_path / "pool.toml", {})
    assert [str(problem) for problem in config.problems] == []
    assert len(config) == 1


def test_each_command_that_is_named_is_one() -> None:
    from poolctl.cli.table import OWN

    named = set(re.findall(r"`poolctl ([a-z]+)", PAGE))
    assert named
    assert named <= {*OWN, "export"}
