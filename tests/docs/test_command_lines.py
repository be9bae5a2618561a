"""Every poolctl command line in the documents is one, and those that end by themselves do what they say."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from pathlib import Path

import pytest

from poolctl.cli.outcome import Failure
from tests.commands import parsed
from tests.real_pool import RealPool

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_INLINE = re.compile(r"`(poolctl [^`]+)`")
_SHELL = {"&&", "||", "|", ";", ">"}

# What cannot be executed here, and why.
ENDLESS = {"run", "serve", "top", "reload --watch", "logs -f"}
WITH_GATEWAY = {"export haproxy", "logs --gateway", "backends", "register", "unregister", "routes"}
CHANGES_MORE = {"upgrade", "add", "remove", "doctor --notify", "init", "dashboard", "stop"}
OF_OTHER_TOOLS = {"import"}  # their files are not here
NAMED_ALONE = {"enable", "exec", "scale", "show"}  # a mention of the command, which needs a selection
SERVERS = ("users", "orders")
KEYS = 'tags = ["api"]'


def command_lines(page: Path) -> set[str]:
    """The words after `poolctl` of each command line of a page, without what the shell does with the rest."""
    text = page.read_text()
    typed = [
        line
        for kind, block in _BLOCK.findall(text)
        if kind in ("sh", "console", "bash")
        for line in block.split("\n")
        if line.startswith("poolctl ")
    ]
    typed += [" ".join(each.split()) for each in _INLINE.findall(_BLOCK.sub("", text))]
    found = set()
    for line in typed:
        words = shlex.split(line, comments=True)
        for only, group in itertools.groupby(words, lambda word: word not in _SHELL):
            command = list(group)
            # Square brackets stand in a description of many command lines.
            if (
                only
                and command[0] == "poolctl"
                and command[1] != "help"
                and not any(each.startswith("[") for each in command)
            ):
                found.add(shlex.join(command[1:]))
    return found


EVERY = {(page.name, line) for page in PAGES for line in command_lines(page)}


@pytest.mark.parametrize(("page", "line"), sorted(EVERY))
def test_command_line_is_understood(page: str, line: str) -> None:
    words = shlex.split(line)
    try:
        assert parsed(words).info_name in words
    except Failure:
        assert "-" in words, "standard input is empty here"


def is_executed(line: str) -> bool:
    """Whether it ends by itself, needs nothing but a pool, and changes nothing outside of it."""
    verb = next((word for word in line.split() if not word.startswith("-")), "")
    others = not {*ENDLESS, *WITH_GATEWAY, *CHANGES_MORE, *OF_OTHER_TOOLS} & {
        verb,
        " ".join(line.split()[:2]),
    }
    return (
        others
        and line not in NAMED_ALONE
        and not line.startswith("-c")
        and "/etc" not in line
        and "FILE" not in line
        and "--auto" not in line  # the servers have no triggers
    )


@pytest.mark.slow
@pytest.mark.unmeasured
@pytest.mark.timeout(300)  # many commands, which take seconds each on a busy machine
def test_command_lines_do_what_they_say(real_pool: RealPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(real_pool.directory))
    real_pool.write_hello(*SERVERS, extra=KEYS)
    real_pool.append('[pool]\nname = "shop"\n[kubernetes]\nimage = "shop:1.4"\n')
    real_pool.ok("start")
    executed = 0
    # What is drained is put back at once: others need it.
    lines = sorted(
        {line for _, line in EVERY if is_executed(line)}, key=lambda line: (line.removeprefix("un"), line)
    )
    for line in lines:
        # Names of other pools, and placeholders, are those of this one.
        words = [os.path.expanduser(word) for word in shlex.split(line)]
        words = [
            re.sub(r"^(NAME|web|app|mail|queue|backup|migrate|api-\*)$", "users", word) for word in words
        ]
        real_pool.ok(*words)
        executed += 1
    assert executed > 25
    assert list((real_pool.directory / ".config/systemd/user").iterdir())
