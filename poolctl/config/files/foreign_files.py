"""Recognises the files of other tools, which `poolctl import` reads."""

from __future__ import annotations

import os
import re
import shlex

from poolctl.config.values.problems import Tree

PROCFILE = "a Procfile"
SUPERVISORD = "a file of supervisord"
UNIT = "a systemd unit"
COMPOSE = "a file of docker compose"
ECOSYSTEM = "an ecosystem file of pm2"
JAVASCRIPT = "JavaScript"
_NAMES = {
    PROCFILE: r"procfile(\..*)?|.*\.procfile",
    SUPERVISORD: r".*\.(conf|ini)",
    UNIT: r".*\.service",
    JAVASCRIPT: r".*\.(js|cjs|mjs|ts)",
}


def foreign_format(path: str, data: Tree = None) -> str:
    """The format of another tool's file, by its name, or by its content as YAML or JSON; "" for others."""
    if isinstance(data, dict):
        if "server" in data or "pool" in data:
            return ""
        if isinstance(data.get("services"), dict):
            return COMPOSE
        return ECOSYSTEM if isinstance(data.get("apps"), list) else ""
    name = os.path.basename(path).lower()
    return next((each for each, pattern in _NAMES.items() if re.fullmatch(pattern, name)), "")


def import_hint(path: str) -> str:
    """The hint how to convert the file to one for poolctl."""
    from poolctl.config.values.problems import shorter

    return f"`poolctl import {shlex.quote(shorter(path))} -o pool.toml` makes one of it"
