"""Ecosystem files of pm2 become servers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import Import

PROCESSORS = os.cpu_count() or 1
ONE_PROCESS = "one process, as several cannot share its port; workers if it has none"
PROXIED = {"socket": "proxied", "workers": os.cpu_count()} if os.cpu_count() != 1 else {}
# pm2's defaults, where poolctl's are others.
STOP = {"stop_signal": "SIGINT", "stop_timeout": "1600ms", "stop_group": "together"}


@pytest.mark.usefixtures("installed_haproxy")
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
            "env": {"LEVEL": "info", "PORT": "{port}"}, "limits": {"memory": "300MiB"}, **STOP,
            "stop_timeout": "3000ms", "log": {"path": "api/logs/api.log"}, "restart": "always", **PROXIED,
        },
        "queue": {"command": ["python3", "queue.py"], "workers": 2, "restart": "no", **STOP},
        "uvicorn": {"bind": "127.0.0.1:9000", "app": "main:app", "restart": "always"},
    }  # fmt: skip
    assert "ecosystem.json:7: instances: max: by the number of processors of this machine" in said.remarks
    assert "ecosystem.json:20: watch: true: poolctl run --watch" in said.remarks


def test_remark_about_a_script_is_at_its_line(imported: Import) -> None:
    text = '{"apps": [\n{"name": "a",\n"script": "uvicorn",\n"interpreter": "none",\n"args": "m:a --uds-mode 1"}]}\n'
    remarks = imported(text, "ecosystem.json").remarks
    assert [each for each in remarks if each.startswith("ecosystem.json:3: ")], remarks


@pytest.mark.parametrize(
    ("keys", "found", "remarks"),
    [
        ({"uid": "root", "gid": "root"}, {"user": "root:root"}, []),
        ({"env": {"A": True, "B": "${C}", "PORT": "auto"}}, {"env": {"A": "true", "B": "$${C}", "PORT": "auto"}}, []),
        ({"env": {"PORT": 80}}, {"bind": ":80", "env": {"PORT": "{port}"}}, []),
        ({"args": ["${x}", 1]}, {"command": ["bash", "a.sh", "x", "$${x}", "1"]}, []),
        ({"args": "y 'z"}, {"command": ["bash", "a.sh", "x", "y 'z"]}, []),
        ({"interpreter_args": "-w 'x y'"}, {"command": ["bash", "-w", "x y", "a.sh", "x"]}, []),
        ({"node_args": ["--x"]}, {"command": ["bash", "--x", "a.sh", "x"]}, []),
        ({"interpreter": "none", "node_args": "--x"}, {"command": ["a.sh", "x"]}, ["node_args: --x: no equivalent"]),
        ({"node_args": "-w", "interpreter_args": "-v"}, {"command": ["bash", "-w", "a.sh", "x"]},
         ["interpreter_args: -v: no equivalent"]),
        ({"exec_interpreter": "zsh"}, {"command": ["zsh", "a.sh", "x"]}, []),
        ({"max_memory_restart": 1000}, {"limits": {"memory": 1000}}, []),
        ({"max_memory_restart": "1000"}, {"limits": {"memory": 1000}}, []),
        ({"max_memory_restart": "2G"}, {"limits": {"memory": "2GiB"}}, []),
        ({"kill_timeout": "5s"}, {"stop_timeout": "5s"}, []),
        ({"treekill": True}, {"stop_group": "together"}, []),
        ({"exp_backoff_restart_delay": 200},
         {"restart": {"policy": "always", "backoff": {"initial": "200ms", "max": "15s", "factor": 1.5}}}, []),
        ({"port": 80}, {"bind": ":80", "env": {"PORT": "{port}"}}, []),
        ({"user": "root"}, {"user": "root"}, []),
        ({"gid": "root"}, {"user": "root:root"}, []),
        ({"cwd": "/srv", "out_file": "l"}, {"cwd": "/srv", "log": {"path": "/srv/l"}}, []),
        ({"treekill": False}, {"stop_group": "leader"}, []),
        ({"log_file": "y.log", "out": "${HOME}/x.log"}, {"log": {"path": "$${HOME}/x.log"}},
         ["log_file: y.log: a server has one log, of both streams"]),
        ({"out_file": "NULL"}, {}, ["out_file: NULL: a server has one log, of both streams"]),
        ({"env_file": "${E}"}, {"env_file": "$${E}"}, []),
        ({"cwd": "${D}"}, {"cwd": "$${D}"}, []),
        ({"autostart": False}, {"on_demand": True}, []),
        ({"autostart": True}, {}, []),
        ({"max_restarts": 3, "restart_delay": 100},
         {"restart": {"policy": "always", "limit": 3, "backoff": {"initial": "100ms", "max": "100ms"}}}, []),
        ({"max_restarts": "3", "restart_delay": 0}, {"restart": {"policy": "always", "limit": 3}}, []),
        ({"max_restarts": "few"}, {}, ["max_restarts: few: no equivalent"]),
        ({"restart_delay": "1s"}, {"restart": {"policy": "always", "backoff": {"initial": "1s", "max": "1s"}}}, []),
        ({"autorestart": False}, {"restart": "no"}, []),
        ({"instances": 1}, {}, []),
        ({"instances": "2"}, {"workers": 2}, []),
        ({"instances": 0}, {"workers": PROCESSORS}, ["instances: 0: by the number of processors of this machine"]),
        ({"instances": -1}, {"workers": max(PROCESSORS - 1, 1)},
         ["instances: -1: by the number of processors of this machine"]),
        ({"instances": 2, "exec_mode": "cluster"}, {}, [f"instances: 2: {ONE_PROCESS}"]),
        ({"instances": 2, "interpreter": "node"}, {"command": ["node", "a.sh", "x"]}, [f"instances: 2: {ONE_PROCESS}"]),
        ({"instances": 2, "interpreter": "node", "exec_mode": "fork_mode"},
         {"command": ["node", "a.sh", "x"], "workers": 2}, []),
        ({"instances": "some"}, {}, ["instances: some: not a number of processes"]),
        ({"instances": 1, "env": {"PORT": 80}}, {"bind": ":80", "env": {"PORT": "{port}"}}, []),
        ({"instances": 2, "env": {"PORT": 80}},
         {"bind": ":80", "env": {"PORT": "{port}"}, "socket": "proxied", "workers": 2}, []),
        ({"instances": 2, "exec_mode": "cluster", "args": "--port 80"},
         {"command": ["bash", "a.sh", "x", "--port", "80"]}, [f"instances: 2: {ONE_PROCESS}"]),
        ({"wait_ready": True}, {},
         ["wait_ready: true: notify = true waits for READY=1 on NOTIFY_SOCKET, not for process.send"]),
        ({"cron_restart": "0 0 * * *"}, {}, ["cron_restart: 0 0 * * *: `poolctl restart a` in a crontab"]),
        ({"cron_restart": 0}, {}, []),
        ({"watch": True}, {}, ["watch: true: poolctl run --watch"]),
        ({"watch": False}, {}, []),
        ({"namespace": "n"}, {}, ["namespace: n: no equivalent"]),
        ({"ignore_watch": []}, {}, []),
        ({"env_": 1}, {}, ["env_: 1: no equivalent"]),
        ({"env_x": {"A": 1}}, {}, ["env_x: A: 1: a second file with these, given by another -c, wins over this one"]),
        ({"error_file": "x", "merge_logs": True, "listen_timeout": 5}, {},
         ["error_file: x: a server has one log, of both streams",
          "listen_timeout: 5: start_timeout limits how long a start takes"]),
    ],
)  # fmt: skip
def test_key_of_an_app_is_a_key_or_a_remark(
    imported: Import, keys: dict[str, Any], found: dict[str, Any], remarks: list[str]
) -> None:
    app = {"script": "a.sh x", "name": "a", **keys}
    said = imported(json.dumps({"apps": [app]}), "ecosystem.json")
    expected = {"command": ["bash", "a.sh", "x"], "restart": "always", **STOP, **found}
    assert said.remarks == [f"ecosystem.json:1: {each}" for each in remarks]
    expected = {key: value for key, value in expected.items() if (key, value) != ("workers", 1)}
    assert said.servers == {"a": expected}


def test_app_without_a_script_is_left_out_and_its_neighbours_are_not(imported: Import) -> None:
    apps = [
        {"script": "m.rb", "name": "a/b"}, 5, {"script": "b"}, {"name": "d", "script": " ", "instances": "many"},
        {"script": "uvicorn", "args": "m:app --port 90", "interpreter": "none", "instances": 3, "env": {"PORT": "1"}},
    ]  # fmt: skip
    said = imported(json.dumps({"apps": apps, "deploy": {"a": 1}}), "ecosystem.json")
    assert said.servers == {
        "a-b": {"command": ["ruby", "m.rb"], "restart": "always", **STOP},
        "b": {"command": ["b"], "restart": "always", **STOP},
        "uvicorn": {
            "bind": "127.0.0.1:90", "app": "m:app", "workers": 3, "env": {"PORT": "1"}, "restart": "always",
        },
    }  # fmt: skip
    assert said.remarks == [
        "ecosystem.json:1: apps: 5: a value of another type than expected",
        "ecosystem.json:1: deploy: a: 1: no equivalent",
        "ecosystem.json:1: left out: it has no script",
        "[[server]]",
        'name = "d"',
        'restart = "always"',
        "ecosystem.json:1: instances: many: no equivalent",
    ]


def test_remark_is_at_the_line_of_its_key(imported: Import) -> None:
    text = """{"apps": [
{"script": "a",
"instances": "max",
"watch": true,
"restart_delay": "soon"},
{"script": "b",
"autorestart": true,
"restart_delay": "soon"}],
"deploy": {"a": 1}}"""
    places = [each.split()[0] + each.split()[1] for each in imported(text, "ecosystem.json").remarks]
    assert places == [
        "ecosystem.json:9:deploy:", "ecosystem.json:3:instances:", "ecosystem.json:4:watch:",
        "ecosystem.json:5:restart_delay:", "ecosystem.json:8:restart_delay:",
    ]  # fmt: skip


def test_file_without_an_app_is_refused(imported: Import) -> None:
    said = imported('{"apps": [5]}', "ecosystem.json", valid=False)
    hint = "is this an ecosystem file of pm2?"
    assert (said.code, said.err) == (5, f"error: ecosystem.json:1: there is no app in it\n  hint: {hint}\n")


@pytest.mark.parametrize(
    ("script", "interpreter"),
    [
        ("./bin/www", "node"), ("www", "node"), ("src/index.ts", "bun"), ("./a.php", "php"), ("./a.pl", "perl"),
        ("bin/serve", ""), ("worker", ""), ("/usr/local/bin/worker", ""),
    ],
)  # fmt: skip
def test_script_has_the_interpreter_of_pm2(
    imported: Import, tmp_path: Path, script: str, interpreter: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "serve").write_bytes(b"\x7fELF\0")
    (tmp_path / "www").write_text("#!/usr/bin/env node\n")
    said = imported(
        json.dumps({"apps": [{"name": "a", "script": script, "node_args": "-x"}]}), "ecosystem.json"
    )
    words = [interpreter, "-x", script] if interpreter else [script]
    assert said.servers["a"]["command"] == words
    assert [each for each in said.remarks if "bun" in each] == [
        "ecosystem.json:1: script: src/index.ts: run by bun, as in pm2 6; ts-node and tsx are others"
    ] * (interpreter == "bun")


LITERAL = """\
/* The apps // of
   the shop */
{
  apps: [
    { name: 'api', script: "it's // no comment.js", // one
      env: { URL: "http://x", 'QUOTE': 'a"b\\'c\\n', N: 1.0, }, },
    { script: './b.sh' },
  ],
};
"""


def test_ecosystem_file_may_be_an_object_literal_of_javascript(imported: Import) -> None:
    said = imported(LITERAL.replace("};", "}").replace("'./b.sh'", "'./b.sh', watch: true"), "process.json")
    assert said.servers["api"]["env"] == {"URL": "http://x", "QUOTE": "a\"b'c\n", "N": "1"}
    assert said.servers["b"]["command"] == ["bash", "./b.sh"]
    assert said.remarks == ["process.json:7: watch: true: poolctl run --watch"]


def test_expression_of_javascript_is_named_with_the_command_that_resolves_it(imported: Import) -> None:
    said = imported(LITERAL.replace("1.0", "process.env.N"), "process.json", valid=False)
    assert said.code == 5
    assert said.err.startswith("process.json:6:")
    assert "'process.env.N' is no value; print it as JSON, `node -p 'JSON.stringify(eval(" in said.err
    assert "> process-plain.json`" in said.err
    broken = imported('{"apps": [', "process.json", valid=False)
    assert "node" not in broken.err


@pytest.mark.parametrize("form", ['{"apps": %s}', '{"pm2": [%s]}', "[%s]", "%s"])
def test_apps_may_stand_alone(imported: Import, form: str) -> None:
    said = imported(form % '{"name": "a", "script": "a.sh",\n"watch": true}', "process.json")
    assert said.servers["a"]["command"] == ["bash", "a.sh"]
    assert said.remarks == ["process.json:2: watch: true: poolctl run --watch"]


@pytest.mark.parametrize(
    ("keys", "command", "remarks"),
    [
        ({"cmd": "node a.js -x"}, ["node", "a.js", "-x"], []),
        ({"script": "a.sh", "args": 5}, ["bash", "a.sh"],
         ["process.json:1: args: 5: a value of another type than expected"]),
        ({"command": "./a.sh"}, ["bash", "./a.sh"], []),
        ({"script": "a | b", "args": "-x"}, ["bash", "-c", "a | b"],
         ["process.json:1: args: -x: pm2 passes none to a line for bash"]),
        ({"script": "a.js", "interpreter": "node@18"}, ["node", "a.js"],
         ["process.json:1: interpreter: node@18: write the path of that version of node"]),
        ({"script": "sh", "interpreter": "python3"}, ["python3", "/bin/sh"], []),
    ],
)  # fmt: skip
def test_command_of_an_app_is_the_one_that_pm2_starts(
    imported: Import,
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, str],
    command: list[str],
    remarks: list[str],
) -> None:
    monkeypatch.setenv("PATH", "/bin")
    said = imported(json.dumps({"apps": [{"name": "a", **keys}]}), "process.json")
    assert (said.servers["a"]["command"], said.remarks) == (command, remarks)


def test_variable_whose_value_is_an_object_is_its_json(imported: Import) -> None:
    env = {"A": {"x": [1, "é"]}, "B": None, "C": [True]}
    said = imported(json.dumps({"apps": [{"name": "a", "script": "a.sh", "env": env}]}), "process.json")
    assert said.servers["a"]["env"] == {"A": '{"x":[1,"é"]}', "B": "null", "C": "[true]"}


def test_files_that_pm2_serves_itself_are_named_with_a_command(imported: Import) -> None:
    app = {"name": "www", "script": "serve", "env": {"PM2_SERVE_PATH": "dist", "PM2_SERVE_PORT": 8081}}
    said = imported(json.dumps({"apps": [app]}), "process.json", valid=False)
    assert '["python3", "-m", "http.server", "{port}", "--directory", "dist"]' in said.err
