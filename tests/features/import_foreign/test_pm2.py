"""Ecosystem files of pm2 become servers."""

from __future__ import annotations

import json

from .conftest import Import


def test_ecosystem_of_pm2(imported: Import) -> None:
    apps = [
        {
            "name": "api", "script": "./server.js", "args": "--verbose", "instances": "max", "exec_mode": "cluster",
            "env": {"PORT": 3000, "LEVEL": "info"}, "env_production": {"LEVEL": "warn"}, "cwd": "api",
            "max_memory_restart": "300M", "kill_timeout": 3000, "out_file": "logs/api.log", "watch": True,
        },
        {"name": "queue", "script": "queue.py", "instances": 2, "autorestart": False},
        {"script": "uvicorn", "args": "main:app --port 9000", "interpreter": "none"},
    ]  # fmt: skip
    said = imported(json.dumps({"apps": apps, "deploy": {}}, indent=1), "ecosystem.json")
    assert said.servers == {
        "api": {
            "bind": ":3000", "command": ["node", "./server.js", "--verbose"], "cwd": "api",
            "env": {"LEVEL": "info", "PORT": "{port}"}, "limits": {"memory": "300MiB"}, "stop_timeout": "3000ms",
            "log": {"path": "logs/api.log"}, "restart": "always",
        },
        "queue": {"command": ["python3", "queue.py"], "workers": 2, "restart": "no"},
        "uvicorn": {"bind": "127.0.0.1:9000", "app": "main:app", "restart": "always"},
    }  # fmt: skip
    assert (
        "ecosystem.json:7: instances: max: workers, once the program takes the socket ({fd})" in said.remarks
    )
    assert "ecosystem.json:20: watch: poolctl run --watch" in said.remarks


def test_remark_about_a_script_is_at_its_line(imported: Import) -> None:
    text = '{"apps": [\n{"name": "a",\n"script": "uvicorn",\n"interpreter": "none",\n"args": "m:a --uds-mode 1"}]}\n'
    remarks = imported(text, "ecosystem.json").remarks
    assert [each for each in remarks if each.startswith("ecosystem.json:3: ")], remarks
