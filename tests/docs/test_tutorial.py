"""The tutorial, pasted step by step into a shell in an empty directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, blocks, some
from tests.real_pool import RealPool

# Of the programs that the tests use only poolctl: a reader's python3 has none of their packages.
AS_A_READER = "export PATH=$PWD/bin:/usr/bin:/bin\n"

# A busy machine needs more than the second that a reader waits before the worker has sent the order.
SECOND = "sleep 1\n"
UNTIL_SENT = 'until poolctl logs queue -n 5 | grep --quiet "on its way"; do sleep 0.2; done\n'

# What a step shows, besides what every step shows: exit status 0.
SHOWS = {
    "The application": [
        "2 servers, ok",
        '{"order":1}',
        '[{"item":"tea","done":true}]',
        "order 1: tea is on its way",
    ],
    "Restart without losing a request": ["200\n", '"version":"2"'],
    "More processes": ["running"],
    "A crash": ['"shop":"open"', "killed by SIGKILL"],
    "A change of the file": ["~ queue: env.PYTHONUNBUFFERED"],
    "One address for all": ['"shop":"open"', "web"],
    "Tests": ["1 passed"],
    "On a server": ["[Service]", "Type=notify"],
}


@pytest.mark.slow
@pytest.mark.timeout(300)  # many commands, which take seconds each on a busy machine
def test_each_step_shows_what_the_tutorial_says(reader: Any, real_pool: RealPool) -> None:
    (real_pool.directory / ".venv").symlink_to(sys.prefix)
    (real_pool.directory / "bin").mkdir()
    (real_pool.directory / "bin" / "poolctl").symlink_to(Path(sys.executable).with_name("poolctl"))
    (page,) = (path for path in PAGES if path.stem == "tutorial")
    sections = list(dict.fromkeys(each.section for each in blocks(page)))
    assert sections == ["An environment", *SHOWS]
    assert page.read_text().count(SECOND) == 1
    for section, expected in SHOWS.items():
        steps = "\n".join(some("tutorial", section, "sh"))
        output = reader(AS_A_READER + steps.replace(SECOND, UNTIL_SENT))
        for each in expected:
            assert each in output, f"{section}: {each!r} is not in\n{output}"
