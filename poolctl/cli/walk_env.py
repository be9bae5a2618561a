"""What a command that is run for a server gets to know about it: environment variables and placeholders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from poolctl.cli.render import field_text

PREFIX = "POOLCTL_"
WORDS = ("name", "bind", "host", "port", "expose", "state", "pid", "pids", "tags")

_placeholder = re.compile(r"\{(" + "|".join(WORDS) + r")\}")


def facts(item: Mapping[str, Any]) -> dict[str, str]:
    """Every word's value for one server; what does not apply (the port of a Unix socket) is empty."""
    host, port = _host_and_port(str(item.get("bind", "")))
    pids = item.get("pids") or []
    known = {"host": host, "port": port, "pid": str(pids[0]) if pids else ""}
    return {word: known[word] if word in known else field_text(item, word) for word in WORDS}


def environment(item: Mapping[str, Any], base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for a command about this server: POOLCTL_NAME and the others, over `base`."""
    return {**base, **{PREFIX + word.upper(): value for word, value in facts(item).items()}}


def arguments(command: list[str], item: Mapping[str, Any]) -> list[str]:
    """The command with `{name}`, `{port}` … replaced; other braces stay, so that JSON can be written as it is."""
    known = facts(item)
    return [_placeholder.sub(lambda match: known[match[1]], word) for word in command]


def _host_and_port(bind: str) -> tuple[str, str]:
    from poolctl.address import parse

    try:
        address = parse(bind)
    except ValueError:
        return "", ""
    return address.host or "", "" if address.port is None else str(address.port)
