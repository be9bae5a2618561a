"""Each value that a key allows is on the page about it."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from poolctl.config.model.server_tables import PROBE_KINDS, RecoveryStrategy, RestartPolicy
from poolctl.features.notify.table import Notify
from poolctl.routing.route import POLICIES
from tests.docs.pages import ROOT

RECEIVERS = get_args(Notify.model_fields["type"].annotation)


@pytest.mark.parametrize(
    ("page", "part", "value", "choices"),
    [
        ("events", "## Notifications(.*)", r'^type = "(\w+)"', RECEIVERS),
        ("gateway", r"`policy` is (.*?)\.", r"`(\S+)`", POLICIES),
        ("health", "## Kinds of probes(.*?)## ", r"^- \*\*`(\w+) = ", PROBE_KINDS),
        ("recovery", "## Strategies(.*?)## ", r"^\| `(\w+)`[^|]*\| \w", get_args(RecoveryStrategy)),
        ("restarts", "## Workers that end(.*?)## ", r"^- \*\*`(\S+)`\*\*", get_args(RestartPolicy)),
    ],
)
def test_every_choice_is_described(page: str, part: str, value: str, choices: tuple[str, ...]) -> None:
    (text,) = re.findall(part, (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    assert set(re.findall(value, text, re.MULTILINE)) == set(choices), (
        f"docs/{page}.md: describe each in the form of the others there, {value!r} in {part!r}"
    )
