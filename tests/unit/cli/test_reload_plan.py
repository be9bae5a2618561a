"""Commands say on standard error that the files have changed, and what would apply the change."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.cli.reload_plan import drift_line, public_drift_line
from tests.stand_in import always, item

from .conftest import Command, Supervised

CHANGED = "pool.toml has changed since the pool read it; `poolctl reload` applies it"


def test_note_is_on_stderr_and_the_document_keeps_its_form(poolctl: Command, supervised: Supervised) -> None:
    with supervised(always(item("users"), changed={"files": ["pool.toml"], "added": 1, "changed": 1})):
        for verb in ("list", "start", "restart"):
            assert poolctl(verb).err == f"note: {CHANGED} (+1 ~1)\n"
        said = poolctl("list", "-o", "json")
        assert poolctl("list", "--quiet").err == ""
    assert said.json == {"schema": 1, "items": [item("users")], "errors": []}
    assert said.err == f"note: {CHANGED} (+1 ~1)\n"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"files": ["pool.toml"]}, CHANGED),
        (
            {"files": ["a.toml", "b.env"], "added": 0, "removed": 2, "changed": 0},
            "a.toml and b.env have changed since the pool read them; `poolctl reload` applies them (-2)",
        ),
        ({"files": ["pool.toml"], "added": 0}, f"{CHANGED} (no difference)"),
        (
            {"files": ["a", "b", "c", "d", "e"], "added": 1},
            "a, b, c and 2 more have changed since the pool read them; `poolctl reload` applies them (+1)",
        ),
        (
            {
                "files": ["pool.toml"],
                "problems": 3,
                "problem": {"message": "not closed", "hint": "close it", "file": "pool.toml", "line": 3},
            },
            (
                "pool.toml has changed since the pool read it, and is not valid: pool.toml:3: not closed "
                "(and 2 more: poolctl validate)"
            ),
        ),
    ],
)
def test_line_names_files_and_numbers_of_changes_or_the_first_problem(
    changed: dict[str, Any], line: str
) -> None:
    assert drift_line(changed) == line


def test_line_for_readers_who_may_see_no_values_names_places_below_the_directory() -> None:
    problem = {"message": "'s3cret' is not allowed", "hint": "", "file": "/srv/conf/pool.toml", "line": 3}
    changed = {"files": ["/srv/conf/pool.toml", "/etc/shop.env"], "problems": 1, "problem": problem}
    assert public_drift_line(changed, "/srv") == (
        "conf/pool.toml and /etc/shop.env have changed since the pool read them, and are not valid: "
        "conf/pool.toml:3 (poolctl validate shows the fix)"
    )
    assert public_drift_line({"files": ["/srv/pool.toml"]}, "/srv") == CHANGED
