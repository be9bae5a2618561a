"""What docs/production.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.real_pool import RealPool

PAGE = (Path(__file__).parents[2] / "docs/production.md").read_text()


def test_every_command_and_option_is_one(real_pool: RealPool) -> None:
    said = {tuple(line.split()[1:]) for line in re.findall(r"`?(poolctl [a-z][^`\n#]*)", PAGE)}
    for verb in {words[0] for words in said}:
        helped = real_pool.ok(verb, "--help").stdout
        for words in said:
            if words[0] == verb:
                assert all(word in helped for word in words if word.startswith("--")), words
    assert "--stop-timeout" in real_pool.ok("run", "--help").stdout
    assert "--log-format" in real_pool.ok("run", "--help").stdout


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).exists(), target
