"""Ecosystem files of pm2."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from .case import Case

_PROCESSORS = os.cpu_count() or 1
_BY_PROCESSORS = "by the number of processors of this machine"
_ALL = {"workers": _PROCESSORS} if _PROCESSORS > 1 else {}
_ALL_BUT_ONE = {"workers": _PROCESSORS - 1} if _PROCESSORS > 2 else {}
_ONE_PROCESS = "one process, as several cannot share its port; workers if it has none"
# pm2's defaults, where poolctl's are others.
_STOP = {"stop_signal": "SIGINT", "stop_timeout": "1600ms", "stop_group": "together"}
_PROGRAM = {"restart": "always", **_STOP}
_SCRIPT = {"script": "a.sh x"}
_OTHER_TYPE = "a value of another type than expected"
# Keys of an app beside `script`, those of its server beside _PROGRAM, and comments.
_KEYS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
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
    ({"instances": 0}, _ALL, [f"instances: 0: {_BY_PROCESSORS}"]),
    ({"instances": "max"}, _ALL, [f"instances: max: {_BY_PROCESSORS}"]),
    ({"instances": -1}, _ALL_BUT_ONE, [f"instances: -1: {_BY_PROCESSORS}"]),
    ({"instances": 2, "exec_mode": "cluster"}, {}, [f"instances: 2: {_ONE_PROCESS}"]),
    ({"instances": 2, "interpreter": "node"}, {"command": ["node", "a.sh", "x"]}, [f"instances: 2: {_ONE_PROCESS}"]),
    ({"instances": 2, "interpreter": "node", "exec_mode": "fork_mode"},
     {"command": ["node", "a.sh", "x"], "workers": 2}, []),
    ({"instances": "some"}, {}, ["instances: some: not a number of processes"]),
    ({"instances": 1, "env": {"PORT": 80}}, {"bind": ":80", "env": {"PORT": "{port}"}}, []),
    ({"instances": 2, "env": {"PORT": 80}},
     {"bind": ":80", "env": {"PORT": "{port}"}, "socket": "proxied", "workers": 2}, []),
    ({"instances": 2, "exec_mode": "cluster", "args": "--port 80"},
     {"command": ["bash", "a.sh", "x", "--port", "80"]}, [f"instances: 2: {_ONE_PROCESS}"]),
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
    ({"env": 5}, {}, [f"env: 5: {_OTHER_TYPE}"]),
    ({"env": {"A": {"x": [1, "é"]}, "B": None, "C": [True]}},
     {"env": {"A": '{"x":[1,"é"]}', "B": "null", "C": "[true]"}}, []),
    ({"cmd": "node a.js -x"}, {"command": ["node", "a.js", "-x"]}, []),
    ({"command": "./a.sh"}, {"command": ["bash", "./a.sh"]}, []),
    ({"script": "a.sh", "args": 5}, {"command": ["bash", "a.sh"]}, [f"args: 5: {_OTHER_TYPE}"]),
    ({"script": "a | b", "args": "-x"}, {"command": ["bash", "-c", "a | b"]},
     ["args: -x: pm2 passes none to a line for bash"]),
    ({"script": "a.js", "interpreter": "node@18"}, {"command": ["node", "a.js"]},
     ["interpreter: node@18: write the path of that version of node"]),
    ({"script": "sh", "interpreter": "python3"}, {"command": ["python3", "/bin/sh"]}, []),
    ({"script": "queue.py"}, {"command": ["python3", "queue.py"]}, []),
    ({"script": "m.rb"}, {"command": ["ruby", "m.rb"]}, []),
    ({"script": "./a.php"}, {"command": ["php", "./a.php"]}, []),
    ({"script": "src/index.ts"}, {"command": ["bun", "src/index.ts"]},
     ["script: src/index.ts: run by bun, as in pm2 6; ts-node and tsx are others"]),
    ({"script": "./bin/www", "node_args": "-x"}, {"command": ["node", "-x", "./bin/www"]}, []),
    ({"script": "www"}, {"command": ["node", "www"]}, []),
    *(({"script": script}, {"command": [script]}, []) for script in ("bin/serve", "worker", "/usr/local/bin/worker")),
    ({"script": "flask", "args": "run", "interpreter": "none", "env": {"FLASK_RUN_PORT": "80"}},
     {"bind": "127.0.0.1:80", "command": ["flask", "run", "--port", "{port}", "--host", "{host}"],
      "env": {"FLASK_RUN_PORT": "80"}}, []),
]  # fmt: skip
_FILES = {"www": "#!/usr/bin/env node\n", "bin/serve": "\x7fELF\0"}
_PRINT = (
    """`node -p 'JSON.stringify(eval("(" + fs.readFileSync("process.json") + ")"), null, 2)' > process-plain.json`, """
    "and import that"
)
_SERVED = (
    "pm2 serves these files itself: "
    'write command = ["python3", "-m", "http.server", "{port}", "--directory", "dist"]'
)
_LITERAL = """\
/* The apps // of
   the shop */
{
  apps: [
    { name: 'api', script: "it's // no comment.js", // one
      env: { URL: "http://x", 'QUOTE': 'a"b\\'c\\n', N: 1.0, }, },
    { script: './b.sh', watch: true },
  ],
}
"""


def _apps(apps: list[Any], servers: dict[str, Any], comments: Sequence[str] = (), **more: Any) -> Case:
    text = json.dumps({"apps": apps, "deploy": {"a": 1}}, indent=1)
    return Case("ecosystem.json", text, servers, comments, **more)


CASES = {
    **{
        str(keys): Case(
            "e.json",
            json.dumps({"apps": [{"name": "a", **({} if {"cmd", "command"} & {*keys} else _SCRIPT), **keys}]}),
            {"a": {"command": ["bash", "a.sh", "x"], **_PROGRAM, **becomes}},
            [f"1: {comment}" for comment in comments],
            _FILES,
            env={"PATH": f"/bin:{os.environ['PATH']}"},
        )
        for keys, becomes, comments in _KEYS
    },
    "several apps": _apps(
        [
            {
                "name": "api", "script": "./server.js", "args": "--verbose", "exec_mode": "cluster",
                "env": {"PORT": 3000, "LEVEL": "info"}, "env_production": {"LEVEL": "warn"}, "cwd": "api",
                "out_file": "logs/api.log",
            },
            5,
            {"script": "m.rb", "name": "a/b", "watch": True, "restart_delay": "soon"},
            {"name": "d", "script": " ", "instances": "many"},
            {"script": "uvicorn", "args": "main:app --port 9000 --uds-mode 1", "interpreter": "none", "instances": 3},
        ],
        {
            "api": {
                "bind": ":3000", "command": ["node", "./server.js", "--verbose"], "cwd": "api",
                "env": {"LEVEL": "info", "PORT": "{port}"}, "log": {"path": "api/logs/api.log"}, **_PROGRAM,
            },
            "a-b": {"command": ["ruby", "m.rb"], **_PROGRAM},
            "uvicorn": {"bind": "127.0.0.1:9000", "app": "main:app", "workers": 3, "restart": "always"},
        },
        [
            f"18: apps: 5: {_OTHER_TYPE}",
            "37: deploy: a: 1: no equivalent",
            "12: env_production: LEVEL: warn: a second file with these, given by another -c, wins over this one",
            "22: watch: true: poolctl run --watch",
            "23: restart_delay: soon: no equivalent",
            *("25: left out: it has no script", "[[server]]", 'name = "d"', 'restart = "always"'),
            "28: instances: many: no equivalent",
            "31: --uds-mode: no equivalent",
            "31: 1: no equivalent",
        ],
    ),
    "names": _apps(
        [{"script": "a", "name": name} for name in ("web", "WEB", "web", "a b/c", "--", "x" * 300)],
        {
            name: {"command": ["a"], **_PROGRAM} for name in ("web", "WEB-2", "web-3", "a-b-c", "server", "x" * 200)
        },
        ["28: deploy: a: 1: no equivalent"],
    ),
    "an object literal of JavaScript": Case(
        "process.json",
        _LITERAL,
        {
            "api": {
                "command": ["node", "it's // no comment.js"], **_PROGRAM,
                "env": {"URL": "http://x", "QUOTE": "a\"b'c\n", "N": "1"},
            },
            "b": {"command": ["bash", "./b.sh"], **_PROGRAM},
        },
        ["7: watch: true: poolctl run --watch"],
    ),
    **{
        f"apps in {form}": Case(
            "process.json",
            form % '{"name": "a", "script": "a.sh",\n"watch": true}',
            {"a": {"command": ["bash", "a.sh"], **_PROGRAM}},
            ["2: watch: true: poolctl run --watch"],
        )
        for form in ('{"apps": %s}', '{"pm2": [%s]}', "[%s]", "%s")
    },
    **{
        text: Case("process.json", text, error=error, code=code)
        for text, error, code in [
            ('{"apps": [5]}', "process.json:1: there is no app in it\n  hint: is this an ecosystem file of pm2?", 5),
            ('{"apps": [', "process.json:1:11: the file ends before all is closed; write ]} at its end", 5),
            ("{apps: process.env.N}", f"process.json:1:10: 'process.env.N' is no value; print it as JSON, {_PRINT}", 5),
            ('{"script": "serve", "env": {"PM2_SERVE_PATH": "dist"}}',
             f"no server could be taken over\n  hint: process.json:1: serve: {_SERVED}", 1),
        ]
    },
}  # fmt: skip
