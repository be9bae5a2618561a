"""What docs/logs.md says is what the commands do."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.real_pool import RealPool

TEXT = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()


def test_commands_are_understood(real_pool: RealPool) -> None:
    real_pool.write_hello("users")
    commands = re.findall(r"^\$ poolctl (.*?)(?: +#.*| \|.*)?$", TEXT, re.MULTILINE)
    assert len(commands) == 9
    for command in commands:
        if " -f" not in command:
            assert real_pool.run(*shlex.split(command)).code in (0, 6), command
    assert real_pool.run("top", "--sort", "requests", "--interval", "5s", "--once").code == 6


def test_rendered_record_is_how_it_is_rendered(real_pool: RealPool) -> None:
    real_pool.write_hello("users")
    record = {"level": "error", "msg": "payment failed", "order": 1742, "amount": 12.5}
    log = real_pool.directory / "users.log"
    log.write_text(json.dumps(record) + "\n")
    real_pool.append(f'log = {{ path = "{log}" }}\n')
    shown = real_pool.ok("logs", "users").stdout.strip()
    assert shown == "users | ERROR payment failed order=1742 amount=12.5"
    assert "users | ERROR 12:00:00.250 payment failed order=1742 amount=12.5" in TEXT
