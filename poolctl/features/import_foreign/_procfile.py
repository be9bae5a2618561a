"""A Procfile of foreman, honcho, overmind or Heroku: `name: shell command line`."""

from __future__ import annotations

import re

from poolctl.features.import_foreign._command_lines import PORT, take_shell_line
from poolctl.features.import_foreign._foreign_pool import ForeignPool, Unreadable

WEB = "web"
RELEASE = "release"
FIRST_PORT, PORT_STEP = 5000, 100  # of foreman, honcho and overmind

_entry = re.compile(r"([A-Za-z0-9_-]+):\s*(.+)")


def pool_of_procfile(text: str) -> ForeignPool:
    """The pool of a Procfile. Raises Unreadable."""
    pool = ForeignPool()
    entries = 0
    for line, row in enumerate(text.splitlines(), 1):
        entry = _entry.fullmatch(row.strip())
        if entry is None:
            if row.strip() and not row.lstrip().startswith("#"):
                pool.remark(line, f"not NAME: COMMAND: {row.strip()}")
            continue
        name, command = entry.groups()
        server = pool.add(name, line)
        if name == RELEASE:
            server.set("job", True)
        port = str(FIRST_PORT + PORT_STEP * entries)
        entries += 1
        take_shell_line(server, command, line, port)
        words = server.keys.get("command", [])
        if name == WEB and "bind" not in server.keys and words:
            # It reads PORT and binds the port itself.
            server.add_env("PORT", PORT)
            server.set("bind", f"127.0.0.1:{port}")
    if not entries:
        raise Unreadable("no line of it is NAME: COMMAND", "is this a Procfile?", 1)
    if any(server.name == RELEASE for server in pool.servers):
        for server in pool.servers:
            if server.name != RELEASE:
                server.set("depends_on", [{"name": RELEASE, "condition": "completed"}])
    pool.env_file = ".env"
    return pool
