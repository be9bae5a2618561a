"""docs/kubernetes.md: its file is exported as it is pasted, and its tables have every key without an equal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from poolctl.features.kubernetes._keys import LEFT_OUT, REFUSED
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "kubernetes.md"
TEXT = PAGE.read_text()


def table(heading: str) -> dict[str, str]:
    """The rows of the two columns below the heading, without its markup."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT.split(heading)[1].split("\n\n")[1], re.MULTILINE)
    return dict(rows)


def test_file_is_exported(poolctl: Any, directory: Path) -> None:
    (text,) = (each.text for each in blocks(PAGE) if each.language == "toml")
    (directory / "pool.toml").write_text(text)
    (command,) = (each.text for each in blocks(PAGE) if each.language == "sh")
    done = poolctl(*command.split()[1:])
    assert (done.code, "warning" in done.err) == (0, False), done.err
    assert sorted(path.name for path in (directory / "cluster").iterdir()) == ["1-users.yaml", "2-web.yaml"]


def test_keys_without_an_equal_are_those_of_the_export() -> None:
    left_out, refused = table("because the server runs without it:"), table("and names the place:")
    assert left_out == dict(LEFT_OUT)
    assert refused == {key: reason for key, (_, reason, _) in REFUSED.items()}
