"""Each message of docs/troubleshooting.md is one that the code prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
# What the kernel, and not poolctl, says; statuses of HTTP.
OF_OTHERS = {"Too many open files", "404", "503"}
MESSAGES = {
    message
    for line in re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    for message in re.findall(r"`([^`]+)`", line)
} - OF_OTHERS
CODE = "".join(path.read_text() for path in sorted(ROOT.glob("poolctl/**/*.py")))


@pytest.mark.parametrize("message", sorted(MESSAGES))
def test_message_is_in_the_code(message: str) -> None:
    assert message in CODE
