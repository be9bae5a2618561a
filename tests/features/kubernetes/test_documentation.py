"""docs/kubernetes.md: its file is exported as it is pasted, and its tables have every key without an equal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from poolctl.features.kubernetes._keys import IGNORED, UNSUPPORTED
from poolctl.features.kubernetes._routes import ROUTE_IGNORED, ROUTE_UNSUPPORTED
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "kubernetes.md"
TEXT = PAGE.read_text()


def table(head: str) -> dict[str, str]:
    """The rows of the table of two columns with this head, without its markup."""
    (rest,) = TEXT.split(f"| {head} |\n")[1:]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", rest.split("\n\n")[0], re.MULTILINE))


def test_file_is_exported(poolctl: Any, directory: Path) -> None:
    text, keys_of_routes = (each.text for each in blocks(PAGE) if each.language == "toml")
    (directory / "pool.toml").write_text(text)
    (command,) = (each.text for each in blocks(PAGE) if each.language == "sh")
    done = poolctl(*command.split()[1:])
    assert (done.code, "warning" in done.err) == (0, False), done.err
    (line,) = (line for line in keys_of_routes.splitlines() if line.startswith("gateway"))
    text = text.replace("[kubernetes]\n", f"[kubernetes]\n{line}\n")
    (directory / "pool.toml").write_text(f'{text}\n[[route]]\nto = "web"\n')
    assert "HTTPRoute" in poolctl("export", "kubernetes").out
    assert sorted(path.name for path in (directory / "cluster").iterdir()) == [
        "kustomization.yaml",
        "server-users.yaml",
        "server-web.yaml",
    ]


def test_keys_without_an_equal_are_those_of_the_export() -> None:
    assert table("key | on a cluster") == dict(IGNORED)
    assert table("key | because") == {key: reason for key, (_, reason, _) in UNSUPPORTED.items()}
    assert table("key of a route | on a cluster") == dict(ROUTE_IGNORED)
    assert table("key of a route | because") == {
        key: reason for key, (reason, _) in ROUTE_UNSUPPORTED.items()
    }
