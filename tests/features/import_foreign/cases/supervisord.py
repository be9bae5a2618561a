"""Files of supervisord."""

from __future__ import annotations

from .case import Case

_JOB = 'startsecs=0: a job, as it may end at once; for a program that runs on, ready_after = "0s"'
_RETRIES = (
    "a server that was never ready is given up after 8 restarts in 5m, one that was ready never; restart.limit would"
    " count each of its ends"
)
_LISTENER = "[[notify]] runs a command for events, mandatory ends the pool with a server"
# Lines of a program, the keys that they become, and comments with their lines.
_SETTINGS: list[tuple[list[str], dict[str, object], list[str]]] = [
    (["autostart=TRUE", "autorestart=false", "stopsignal=term"],
     {"restart": "no", "stop_signal": "SIGTERM"}, []),
    (["autorestart=maybe"], {}, ["3: autorestart=maybe: no equivalent"]),
    (["autorestart=false", "startsecs=0"], {"restart": "no", "job": True}, [f"4: {_JOB}"]),
    (["autorestart=false", "startsecs=0", "command=a -F"],
     {"restart": "no", "ready_after": "0s", "command": ["a", "-F"]}, []),
    (["numprocs=%(ENV_N)s", "stopwaitsecs=%(ENV_T)s"], {"workers": "${N}", "stop_timeout": "${T}s"}, []),
    (["autostart=%(ENV_A)s", "stopasgroup=%(ENV_A)s"], {},
     ["3: autostart=${A}: no equivalent", "4: stopasgroup=${A}: no equivalent"]),
    (["startretries=3", "autostart=yes", "stopasgroup=FALSE"], {}, []),
    (["autorestart=false", "startsecs=5"], {"restart": "no", "ready_after": "5s"}, []),
    (["umask=22", "priority=999"], {"umask": "022"}, []),
    (["priority=5"], {}, ["3: priority=5: servers start at once; depends_on lets one wait for another"]),
    (["environment=A=1,B"], {"env": {"A": "1"}}, ["3: environment: B: not NAME=VALUE"]),
    (["stdout_logfile=/x", "stderr_logfile=/x", "stderr_logfile_maxbytes=1MB"],
     {"log": {"path": "/x", "max_size": "50MiB", "keep": 10}}, []),
    (["stdout_logfile=/x", "stderr_logfile=/y"], {"log": {"path": "/x", "max_size": "50MiB", "keep": 10}},
     ["4: stderr_logfile=/y: a server has one log, of both streams"]),
    (["stdout_logfile_maxbytes=1MB"], {"log": {"max_size": "1MiB"}}, []),
    (["startretries=4"], {}, [f"3: startretries=4: {_RETRIES}"]),
    (["stdout_logfile=AUTO", "stdout_events_enabled=false", "exitcodes=0"], {}, []),
    (["stopasgroup=true", "killasgroup=true"], {"stop_group": "together"}, []),
    (["stopasgroup=false", "killasgroup=true"], {}, []),
    (["stdout_logfile=/dev/fd/1", "stderr_logfile=/dev/fd/2", "stdout_logfile_maxbytes=5MB"], {}, []),
    (["exitcodes=0,2"], {}, ["3: exitcodes=0,2: no equivalent"]),
    (["stdout_syslog=true"], {}, ["3: stdout_syslog=true: no equivalent"]),
    (["stderr_logfile=syslog"], {}, ["3: stderr_logfile=syslog: a server has one log, of both streams"]),
    (["nodaemon=1"], {}, ["3: nodaemon=1: no equivalent"]),
    (["stderr_logfile=/e"], {}, ["3: stderr_logfile=/e: a server has one log, of both streams"]),
    (["directory=%(nothing)s", "umask=022"], {"umask": "022"},
     ["3: directory=%(nothing)s: an expression that is not understood"]),
    (["stdout_logfile=/x", "stdout_logfile_maxbytes=0", "stdout_logfile_backups=many"],
     {"log": {"path": "/x", "max_size": "1TiB", "keep": 10}}, ["5: stdout_logfile_backups=many: no equivalent"]),
    (["stdout_logfile=/x", "stdout_logfile_maxbytes=10"],
     {"log": {"path": "/x", "max_size": "10", "keep": 10}}, []),
    (["stdout_logfile=/x", "stdout_logfile_maxbytes=x"], {"log": {"path": "/x", "keep": 10}},
     ["4: log.max_size = \"x\": 'x' is not a size; write a number of bytes, or a string such as \"64KiB\", \"10MB\""]),
    (["stopsignal=QUIT", "umask=0027"], {"stop_signal": "SIGQUIT", "umask": "0027"}, []),
    (["startsecs=1"], {}, []),
    (["startsecs=10"], {"ready_after": "10s"}, []),
    (["umask=999"], {}, ['3: umask = "999": \'999\' is not allowed here']),
    (["command=uwsgi --http :80", "stopsignal=QUIT"],
     {"bind": ":80", "command": ["uwsgi", "--http", "{host}:{port}"], "stop_signal": "SIGQUIT",
      "restart": "on-failure"}, []),
    (["user=1", "directory=~root/x"], {"user": "daemon", "cwd": "/root/x"}, []),
    (["command=b 100%% %%(here)s '${HOME}'"], {"command": ["b", "100%", "%(here)s", "$${HOME}"]}, []),
]  # fmt: skip
CASES = {
    **{
        " ".join(lines): Case(
            "s.conf", "\n".join(["[program:a]", "command=a", *lines]), {"a": {"command": ["a"], **keys}}, comments
        )
        for lines, keys, comments in _SETTINGS
    },
    "a whole file": Case(
        "supervisord.conf",
        """\
[unix_http_server]
file=/run/s.sock
[supervisord]
environment=ZONE="eu"
directory=/srv
umask=022
nodaemon=true
minfds=65536
logfile=/var/log/supervisord.log
[inet_http_server]
port=9001
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=x
[include]
files = extra/*.conf %(here)s/more.conf none/*.conf
other=x
[fcgi-program:php]
command=php
[eventlistener:mail]
command=mail
[program:web]
command: python
  web.py   ; the shop
  --port 80
umask=027
environment=A="x,y", B='%(ENV_HOME)s/a' ,C=%(program_name)s-%(group_name)s
stdout_logfile=/var/log/%(program_name)s.log
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=3
[program:other]
command=uvicorn b:app
user=root
startsecs=10

[sandbox]
color=blue
""",
        {
            "web": {
                "command": ["python", "web.py", "--port", "80"],
                "env": {"ZONE": "eu", "A": "x,y", "B": "${HOME}/a", "C": "web-web"},
                "cwd": "/srv",
                "umask": "027",
                "log": {"path": "/var/log/web.log", "max_size": "20MiB", "keep": 3},
            },
            "other": {
                "bind": "127.0.0.1:8000", "app": "b:app", "app_dir": "/srv", "env": {"ZONE": "eu"}, "cwd": "/srv",
                "umask": "022", "user": "root", "restart": "on-failure",
            },
        },
        [
            "15: none/*.conf: there is no such file",
            "8: minfds=65536: limits = { open_files } of a server",
            "10: [inet_http_server]: [dashboard] has an address for browsers",
            "16: other=x: no equivalent",
            "17: [fcgi-program:php]: no equivalent",
            f"19: [eventlistener:mail]: {_LISTENER}",
            "35: [sandbox]: not a section of supervisord",
            '33: ready_after = "10s": ready_after has no effect: an app is ready when it has started',
        ],
        {"extra/b.conf": "", "extra/a.conf": "", "more.conf": ""},
    ),
    "included files": Case(
        "s.conf",
        "[supervisord]\nuser=nobody\n[program:a]\ncommand=%(here)s/a\n[include]\nfiles=conf.d/*\n",
        {
            "a": {"command": ["DIRECTORY/a"], "workers": 2, "user": "nobody", "tags": ["g"]},
            "b": {"command": ["DIRECTORY/conf.d/b"], "user": "nobody", "tags": ["g"]},
        },
        ["conf.d/b.conf:6: [odd]: not a section of supervisord", "conf.d/b.conf:3: exitcodes=3: no equivalent"],
        {
            "conf.d/b.conf": "[program:b]\ncommand=%(here)s/b\nexitcodes=3\n[program:a]\nnumprocs=2\n[odd]\nx=1\n",
            "conf.d/c.conf": "[group:g]\nprograms=a,b\n",
        },
    ),
    "included files alone": Case(
        "s.conf", "[include]\nfiles=a.conf\n", {"a": {"command": ["a"]}}, files={"a.conf": "[program:a]\ncommand=a\n"}
    ),
    "sections of one name": Case(
        "s.conf",
        "[program:a]\ncommand=a\nnumprocs=2\n[program:b]\ncommand=b\n[program:a]\ncommand=c\n",
        {"a": {"command": ["c"], "workers": 2}, "b": {"command": ["b"]}},
    ),
    "number of the process": Case(
        "s.conf",
        """\
[program:one]
command=one %(process_num)d
numprocs=1
[program:many]
command=many %(process_num)02d of %(numprocs)d in %(here)s
numprocs=2
numprocs_start=5
[program:same]
command=same
numprocs=2
process_name=%(program_name)s_%(process_num)02d
[program:odd]
command=odd %(process_num)d
numprocs=two
numprocs_start=first
[program:env]
command=env
numprocs=2
environment=N=%(process_num)d
""",
        {
            "one": {"command": ["one", "0"]},
            "many-5": {"command": ["many", "05", "of", "2", "in", "DIRECTORY"], "tags": ["many"]},
            "many-6": {"command": ["many", "06", "of", "2", "in", "DIRECTORY"], "tags": ["many"]},
            "same": {"command": ["same"], "workers": 2},
            "odd": {"command": ["odd", "0"]},
            "env-0": {"command": ["env"], "env": {"N": "0"}, "tags": ["env"]},
            "env-1": {"command": ["env"], "env": {"N": "1"}, "tags": ["env"]},
        },
        ["14: numprocs=two: no equivalent"],
    ),
    "commands that cannot be read": Case(
        "s.conf",
        "[program:a]\ncommand=a\n[program:f]\ndirectory=/srv\n[program:g]\ncommand=g 'open\n",
        {"a": {"command": ["a"]}},
        [
            *("3: left out: it has no command", "[[server]]", 'name = "f"', 'cwd = "/srv"'),
            "5: left out: its command cannot be read (No closing quotation)",
            *("[[server]]", 'name = "g"', 'command = ["sh", "-c", "g \'open"]'),
        ],
        warning="warning: left out: s.conf:3: f: it has no command\nwarning: left out: s.conf:5: g: ",
    ),
    "addresses that cannot be used": Case(
        "s.conf",
        "".join(
            f"[program:{name}]\ncommand=uvicorn a:b --port {port}\n"
            for name, port in [("a", 80), ("b", 80), ("c", 99999)]
        ),
        {"a": {"bind": "127.0.0.1:80", "app": "a:b", "restart": "on-failure"}},
        [
            "3: left out: the address 127.0.0.1:80 is taken by 'a', pool.toml:5:1; choose another address",
            *("[[server]]", 'name = "b"', 'bind = "127.0.0.1:80"', 'app = "a:b"', 'restart = "on-failure"'),
            "5: left out: port 99999 of '127.0.0.1:99999' is out of range (1-65535); choose another one, or auto",
            *("[[server]]", 'name = "c"', 'bind = "127.0.0.1:99999"', 'app = "a:b"', 'restart = "on-failure"'),
        ],
        warning="warning: left out: s.conf:3: b: the address",
    ),
    "order by priority": Case(
        "s.conf",
        """\
[program:c]
command=c
priority=30
[program:a]
command=a
priority=-1
[program:n]
command=n %(process_num)d
numprocs=2
[program:e]
command=e
priority=high
[program:g]
command=g
priority=25
autostart=false
[group:x y,z]
programs=a, n ,c
priority=3
""",
        {
            "a": {"command": ["a"], "tags": ["x-y-z"]},
            "g": {"command": ["g"], "on_demand": True},
            "c": {"command": ["c"], "tags": ["x-y-z"]},
            "n-0": {"command": ["n", "0"], "tags": ["n", "x-y-z"]},
            "n-1": {"command": ["n", "1"], "tags": ["n", "x-y-z"]},
            "e": {"command": ["e"]},
        },
        [
            f"{at}: servers start at once; depends_on lets one wait for another"
            for at in ("19: priority=3", "6: priority=-1", "15: priority=25", "3: priority=30", "12: priority=high")
        ],
    ),
    **{
        error.partition("\n")[0]: Case("s.conf", text, files=files, error=error)
        for text, files, error in [
            ("[supervisord]\n[include]\nfiles=conf.d/*.conf x/*\n", {"conf.d/a.conf": ""},
             "s.conf:1: there is no [program:NAME] in it\n  hint: there is none in conf.d/*.conf x/* either"),
            ("[include]\nfiles=b.conf\n", {"b.conf": "odd line\n"},
             "b.conf:1: 'odd line' is not KEY=VALUE\n  hint: is this a supervisord.conf?"),
            ("[program:a]\ncommand=a\n\nodd line\n", {},
             "s.conf:4: 'odd line' is not KEY=VALUE\n  hint: is this a supervisord.conf?"),
        ]
    },
}  # fmt: skip
