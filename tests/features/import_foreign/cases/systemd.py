"""Units of systemd."""

from __future__ import annotations

import socket

from .case import Case

# systemd's defaults, where poolctl's are others.
_DEFAULTS = {"restart": "no", "stop_timeout": "90s", "stop_group": "together"}
_HOST = socket.gethostname()
_OPEN = "a.service:2: a: its command cannot be read (No closing quotation)"
_IS_A_UNIT = "\n  hint: is this the unit of a service?"
# Lines of a service, the keys that they become, and comments with their lines.
_SETTINGS: list[tuple[list[str], dict[str, object], list[str]]] = [
    (["ExecStartPre=/bin/b $X ; /bin/c \\;", "ExecStartPre=-/bin/d"],
     {"hooks": {"before_start": ["sh", "-c", "/bin/b $X && /bin/c ';' && { /bin/d || true; }"]}}, []),
    (["Environment='a"], {}, ["3: Environment='a: it cannot be read (No closing quotation)"]),
    (["Nice=5", "UMask=999"], {},
     ["3: Nice=5: no equivalent", '4: umask = "999": \'999\' is not allowed here']),
    (["Type=dbus"], {}, ["3: Type=dbus: no equivalent"]),
    *(
        ([f"ExecStop=/bin/kill {words}"], {},
         [f'3: ExecStop=/bin/kill {words}: stop_signal = "{name}" is for this'])
        for words, name in (("-s QUIT $MAINPID", "SIGQUIT"), ("-INT ${MAINPID}", "SIGINT"), ("$MAINPID", "SIGTERM"))
    ),
    (["ExecStop=/bin/a stop", "WatchdogSec=5"], {},
     ["3: ExecStop=/bin/a stop: no equivalent",
      "4: WatchdogSec=5: health.liveness asks a program whether it works"]),
    (["Type=forking"], {}, ["3: Type=forking: have the program stay in the foreground"]),
    (["Type=exec", "Type=idle"], {}, []),
    (["User=%p", "Group=g"], {"user": "a:g"}, []),
    (["EnvironmentFile=-/nowhere"], {}, ["3: EnvironmentFile=-/nowhere: the file does not exist here"]),
    (["LimitNOFILE=1024"], {"limits": {"open_files": 1024}}, []),
    (["RestartSec=1 minute 2.5 sec 20msec"],
     {"restart": {"policy": "no", "backoff": {"initial": "1m2.5s20ms", "max": "1m2.5s20ms"}}}, []),
    (["Restart=on-success"], {"restart": "always"},
     ["3: Restart=on-success: poolctl restarts it after other exits, too"]),
    (["StartLimitBurst=9", "StartLimitIntervalSec=0"], {},
     ["3: StartLimitBurst=9: an interval of 0 switches it off"]),
    (["StartLimitBurst=0"], {}, []),
    (["Type=notify"], {"notify": True, "start_timeout": "90s"}, []),
    (["StartLimitBurst=3"], {"restart": {"policy": "no", "limit": 3, "window": "10s"}}, []),
    (["TimeoutStopSec=infinity"], {"stop_timeout": "24h"}, []),
    (["TimeoutSec=0", "TimeoutStartSec=0.0s"], {"stop_timeout": "24h", "start_timeout": "24h"}, []),
    (["KillMode=mixed"], {"stop_group": "after"}, []),
    (["MemoryHigh=1G", "MemoryMax=2G"], {"limits": {"memory": "2GiB"}}, ["3: MemoryHigh=1G: no equivalent"]),
    (["SystemCallFilter=@system-service", "SystemCallFilter=~@privileged"], {},
     ["4: SystemCallFilter=@system-service, ~@privileged: no equivalent"]),
    (["Environment=A B=1"], {"env": {"B": "1"}}, ["3: Environment=A B=1: A is not NAME=VALUE"]),
    (["Environment=A=%H-%m"], {"env": {"A": f"{_HOST}-%m"}},
     ["3: Environment=A=%H-%m: %m: no equivalent"]),
    (["StandardOutput=append:/var/log/%p.log", "StandardError=append:/var/log/a.log"],
     {"log": {"path": "/var/log/a.log"}}, []),
    (["StandardOutput=file:/o", "StandardError=file:/e"], {"log": {"path": "/o"}},
     ["4: StandardError=file:/e: a server has one log, of both streams"]),
    (["StandardOutput=null", "StandardError=journal"], {},
     ["3: StandardOutput=null: a server has one log, of both streams"]),
    (["WorkingDirectory=~"], {"cwd": "~"}, []),
    (["WorkingDirectory=~", "User=root"], {"cwd": "/root", "user": "root"}, []),
    (["ExecStart=", "ExecStart=-/bin/b"], {"command": ["/bin/b"]}, ["4: ExecStart=-/bin/b: no equivalent of -"]),
    (["X-Own=1", "Description=a", "RemainAfterExit=yes"], {}, []),
    (["[Install]", "WantedBy=x.target", "Alias=b.service", "[X-Own]", "A=1", "[Timer]", "OnCalendar=daily"], {},
     ["9: [Timer]: not a section of a service"]),
    (["Restart=sometimes"], {}, ["3: Restart=sometimes: no equivalent"]),
    (["Wants=x.socket"], {"bind": "127.0.0.1:9000"}, []),
    (["ExecStopPost=/bin/b", "ExecStopPost="], {}, []),
    (["ExecStopPost="], {}, []),
    (["ExecStopPost=:/bin/b $$X"], {"hooks": {"after_stop": ["/bin/b", "$$X"]}}, []),
    (["KillMode=process"], {"stop_group": "leader"}, []),
    (["KillSignal=2", "UMask=0077"], {"stop_signal": "SIGINT", "umask": "0077"}, []),
    (["ExecStartPre=/bin/mkdir ${HOME}/x"],
     {"hooks": {"before_start": ["sh", "-c", 'exec /bin/mkdir "$${HOME}"/x']}}, []),
    (["ExecStartPre=/bin/old", "ExecStartPre=", "ExecStartPre=/bin/b --name=%N 'two words'",
      "ExecStopPost=-/bin/rm -r $RUNTIME"],
     {"hooks": {"before_start": ["/bin/b", "--name=a", "two words"],
                "after_stop": ["sh", "-c", "/bin/rm -r $RUNTIME || true"]}}, []),
    (["ExecStartPre=/bin/b", "ExecStartPre=+/bin/c d"], {"hooks": {"before_start": ["/bin/b"]}},
     ["4: ExecStartPre=+/bin/c: no equivalent of +"]),
    (["ExecStopPost=+/bin/b"], {}, ["3: ExecStopPost=+/bin/b: no equivalent of +"]),
    (["KillSignal=99"], {}, ['3: stop_signal = "SIG99": \'SIG99\' is not allowed here']),
    (["User=a b"], {}, ['3: user = "a b": \'a b\' is not name[:group]']),
    (["User=1", "Group=2"], {"user": "daemon:bin"}, []),
    (["Environment=\"A=\\x41 'b'\""], {"env": {"A": "A 'b'"}}, []),
    (["Environment=LEVEL=unit MODE=x", "EnvironmentFile=DIRECTORY/*.env"],
     {"env": {"MODE": "x"},
      "env_file": [{"path": f"DIRECTORY/{name}.env", "expand": False} for name in ("1", "2")]}, []),
    (["Sockets=y.socket z.socket"], {"bind": "unix:${XDG_RUNTIME_DIR:-/run}/a.sock"},
     ["3: Sockets=z.socket: a server has one address", "3: y.socket: Backlog=5: no equivalent",
      "3: y.socket: ListenStream=80: a server has one address"]),
    (["Sockets=mode.socket"], {"bind": "unix:/m", "socket_mode": "0600", "socket_owner": "root"}, []),
    (["Sockets=group.socket"], {"bind": "unix:/g", "socket_mode": "0660", "socket_owner": "root:web"}, []),
    (["Sockets=both.socket"], {"bind": "unix:/b", "socket_mode": "0660", "socket_owner": "a:b"}, []),
]  # fmt: skip
_FILES = {
    "x.socket": "[Socket]\nListenStream=127.0.0.1:9000\n",
    "y.socket": "[Unit]\nDescription=x\n[Socket]\nListenStream=%t/a.sock\nListenStream=80\nBacklog=5\nAccept=no\n"
                "Service=a.service\n",
    "z.socket": "[Socket]\nListenStream=81\n",
    "mode.socket": "[Socket]\nListenStream=/m\nSocketMode=0600\n",
    "group.socket": "[Socket]\nListenStream=/g\nSocketMode=0660\nSocketGroup=web\n",
    "both.socket": "[Socket]\nListenStream=/b\nSocketMode=0660\nSocketUser=a\nSocketGroup=b\n",
    "1.env": "LEVEL=file\n",
    "2.env": "LEVEL=file\n",
}  # fmt: skip
# ExecStart, and the command of its server.
_COMMANDS: list[tuple[str, list[str]]] = [
    ("/bin/serve $OPTIONS ${MORE}", ["sh", "-c", 'exec /bin/serve $OPTIONS "$${MORE}"']),
    ("/bin/serve '$$5'", ["/bin/serve", "$5"]),
    ("/bin/serve $$5 $MORE", ["sh", "-c", "exec /bin/serve '$5' $MORE"]),
    (
        "/bin/serve --x=${X}:${Y} a;b '' $MORE",
        ["sh", "-c", """exec /bin/serve --x="$${X}":"$${Y}" 'a;b' '' $MORE"""],
    ),
    (":/bin/serve $X ${Y}", ["/bin/serve", "$X", "$${Y}"]),
    (r"/bin/a a\x20b '\t' \u00e9\101", ["/bin/a", "a b", "\t", "éA"]),
    (r"""/bin/a 'it\'s' "a\"b" c'd e'f""", ["/bin/a", "it's", 'a"b', "cd ef"]),
    (r"/bin/a '\d+\.x' a\.b", ["/bin/a", r"\d+\.x", r"a\.b"]),
    (r"""/bin/a a\;b ';' \; "" """, ["/bin/a", r"a\;b", ";", ";", ""]),
    (r"/bin/a '%p 1' --n=%p", ["/bin/a", "one 1", "--n=one"]),
    ("/bin/sh -c 'cd /x; a \"$HOME\" $$b'", ["/bin/sh", "-c", 'cd /x; a "$HOME" $b']),
]


def _case(
    name: str, text: str, keys: dict[str, object], comments: list[str] | None = None, **files: str
) -> Case:
    """A unit that becomes one server, which has the defaults of systemd."""
    return Case(name, text, {"": {"cwd": "/", **_DEFAULTS, **keys}}, comments or [], files)


CASES = {
    **{
        " ".join(lines): Case(
            "a.service",
            "\n".join(["[Service]", "ExecStart=/bin/a", *lines]),
            {"a": {"command": ["/bin/a"], "cwd": "/", **_DEFAULTS, **keys}},
            comments,
            _FILES,
        )
        for lines, keys, comments in _SETTINGS
    },
    **{
        line: _case("one.service", f"[Service]\nExecStart={line}\n", {"command": command})
        for line, command in _COMMANDS
    },
    **{
        f"{name} {words}": _case(
            name, f"[Service]\nExecStart=/bin/a {words}\n[Install]\nDefaultInstance=1", {"command": ["/bin/a", *others]}
        )
        for name, words, others in [
            ("w@3.service", "%i %N %n %p", ["3", "w@3", "w@3.service", "w"]),
            ("w@a-b\\x2dc.service", "%I", ["a/b-c"]),
            ("w@.service", "%i", ["1"]),
            ("w-x@.service", "--n=%j", ["--n=x"]),
        ]
    },
    "KillMode=none": Case(
        "a.service",
        "[Service]\nExecStart=/bin/a\nKillMode=none\n",
        {"a": {"command": ["/bin/a"], "cwd": "/", "stop_timeout": "90s", "restart": "no"}},
        ["3: KillMode=none: no equivalent"],
    ),
    "instance that is not known": Case(
        "w@.service",
        "[Service]\nExecStart=/bin/a\nEnvironment=N=%i\n",
        {"w": {"command": ["/bin/a"], "cwd": "/", **_DEFAULTS, "env": {"N": "${INSTANCE}"}}},
        ["3: Environment=N=%i: %i: INSTANCE has to be set, or written here"],
        warning="it refers to variables that are not set here: INSTANCE",
    ),
    "a whole unit": Case(
        "a.service",
        """\
; a comment
[Unit]
Documentation=x
Wants=a.socket b.socket network-online.target other.service more.service
PartOf=d.socket
After=systemd-tmpfiles.service dbus.service x.mount y.slice
ConditionPathExists=/x
StartLimitBurst=3
[Service]
Type=notify-reload
ExecStart=@/bin/serve %n %N %p %h %t %i %% \\
    --cost 100%%
Group=www
WorkingDirectory=-/srv/%p
Restart=on-watchdog
RestartSec=500ms
StartLimitInterval=1h
StartLimitBurst=many
TimeoutSec=1min
TimeoutStopSec=1min 30s
TimeoutStartSec=infinity
Environment="A=%n" B= C=x=y 'D=a b'
Environment=E=1
EnvironmentFile=/etc/default/a
EnvironmentFile=-e.env
EnvironmentFile=-%h/none
MemoryHigh=64
LimitNOFILE=infinity
ExecReload=/bin/kill
ExecStartPre=!/bin/prepare
TimeoutStopSec=2x
MemoryMax=1.5G
NoNewPrivileges=\\
  true
[Install]
Also=b.service
""",
        {
            "a": {
                "bind": ":8080",
                "command": ["/bin/serve", "a", "a", "${HOME}", "${XDG_RUNTIME_DIR:-/run}", "", "%", "--cost", "100%"],
                "user": "root:www",
                "cwd": "/srv/a",
                "env": {"A": "a.service", "B": "", "C": "x=y", "D": "a b", "E": "1"},
                "env_file": [{"path": "/etc/default/a", "expand": False}, {"path": "e.env", "expand": False}],
                "notify": True,
                "start_timeout": "24h",
                "stop_timeout": "1m",
                "stop_group": "together",
                "restart": {
                    "limit": 3, "window": "1h", "policy": "on-failure", "backoff": {"initial": "500ms", "max": "500ms"},
                },
                "limits": {"memory": "64B"},
            }
        },
        [
            "4: Wants=b.socket: write its ListenStream as bind",
            "4: Wants=other.service more.service: depends_on, once it is a server of this file",
            "5: PartOf=d.socket: write its ListenStream as bind",
            "7: ConditionPathExists=/x: no equivalent",
            "11: ExecStart=@/bin/serve: the program is called by its path",
            "15: Restart=on-watchdog: poolctl restarts it after other exits, too",
            "18: StartLimitBurst=many: no equivalent",
            "24: EnvironmentFile=/etc/default/a: it takes precedence over Environment=: take out of env what it sets",
            "26: EnvironmentFile=-%h/none: the file does not exist here",
            "28: LimitNOFILE=infinity: no equivalent",
            "29: ExecReload=/bin/kill: poolctl restart replaces the process, poolctl reload applies this file",
            "30: ExecStartPre=!/bin/prepare: no equivalent of !",
            "31: TimeoutStopSec=2x: no equivalent",
            "32: MemoryMax=1.5G: no equivalent",
            "33: NoNewPrivileges=true: no equivalent",
        ],
        {"a.socket": "[Socket]\nListenStream=8080\n", "d.socket": "[Socket]\nListenDatagram=8080\n", "e.env": ""},
    ),
    "commands since the last empty one, of which a oneshot runs all": _case(
        "one.service",
        "[Service]\nType=oneshot\nExecStart=/bin/one\nExecStart=\nExecStart=/bin/a $X 'b c' ; -/bin/d %p\n"
        "ExecStart=+/bin/e\n",
        {"command": ["sh", "-c", "/bin/a $X 'b c' && { /bin/d one || true; } && /bin/e"], "job": True},
        ["6: ExecStart=+/bin/e: no equivalent of +"],
    ),
    "the first of several commands": _case(
        "b@.service",
        "[Service]\nType=simple\nExecStart=/bin/one\nExecStart=\nExecStart=/bin/two\nExecStart=/bin/three\n",
        {"command": ["/bin/two"]},
        ["6: ExecStart=/bin/three: a server has one command"],
    ),
    **{
        f"an app: {line}": Case(
            "a.service",
            f"[Service]\nExecStart=/v/bin/uvicorn a:b --env-file e --timeout-graceful-shutdown 8\n{line}\n",
            {"a": {
                "bind": "127.0.0.1:8000", "app": "a:b", "python": "/v/bin/python3", "app_dir": "/srv", "cwd": "/srv",
                "env_file": ["/srv/e"], "stop_timeout": "10s", "restart": "no", **keys,
            }},
        )
        for line, keys in [
            ("WorkingDirectory=/srv", {}),
            ("WorkingDirectory=/srv\nTimeoutStopSec=20", {"stop_timeout": "20s"}),
            ("WorkingDirectory=/srv\nKillMode=mixed", {}),
            ("WorkingDirectory=/srv\nEnvironmentFile=/f",
             {"env_file": ["/srv/e", {"path": "/f", "expand": False}]}),
        ]
    },
    "activated environment": _case(
        "w.service",
        "[Service]\nWorkingDirectory=/srv\nEnvironment=PORT=80\n"
        "ExecStart=/bin/bash -c 'source venv/bin/activate && exec gunicorn a:app --bind :$PORT'\n",
        {"bind": ":80", "command": ["gunicorn", "a:app"], "cwd": "/srv",
         "env": {"PORT": "80", "PATH": "/srv/venv/bin:${PATH}"}},
    ),
    "socket of the same name": _case(
        "a.service",
        "[Service]\nExecStart=/bin/a\n",
        {"bind": ":80", "command": ["/bin/a"]},
        **{"a.socket": "[Socket]\nListenStream=80\n"},
    ),
    "socket of a program that opens an address of its own": _case(
        "a.service",
        "[Service]\nExecStart=/bin/sh -c 'x; exec granian a:b; true'\n",
        {"bind": "127.0.0.1:8000", "command": ["/bin/sh", "-c", "x; exec granian a:b; true"], "socket": "program"},
        ["2: a.socket: the program opens an address of its own"],
        **{"a.socket": "[Socket]\nListenStream=80\n"},
    ),
    "timer": _case(
        "a.service",
        "[Service]\nType=oneshot\nExecStart=/bin/a\n",
        {"command": ["/bin/a"], "job": True},
        ["3: a.timer: write its OnCalendar as every, of a job"],
        **{"a.timer": "[Timer]\nOnCalendar=daily\n"},
    ),
    "drop-ins": _case(
        "w@x.service",
        "[Service]\nExecStart=/bin/a\nEnvironment=A=1\nEnvironment=B=1\n",
        {"command": ["/bin/b"], "env": {"A": "2", "B": "1"}},
        ["w@x.service.d/2.conf:3: IOWeight=5: no equivalent"],
        **{
            "w@.service.d/1.conf": "[Service]\nExecStart=\nExecStart=/bin/b\n",
            "w@.service.d/2.conf": "[Service]\nNice=5\n",
            "w@x.service.d/2.conf": "[Service]\nEnvironment=A=2\nIOWeight=5\n",
        },
    ),
    "several units": Case(
        "shop.service",
        "[Unit]\nAfter=queue@.service db.service migrate.service\nRequires=queue@.service\nPartOf=queue@.service\n"
        "[Service]\nExecStart=/bin/shop\n",
        {
            "shop": {
                "command": ["/bin/shop"], "cwd": "/", **_DEFAULTS,
                "depends_on": [
                    {"name": "queue", "condition": "ready"}, {"name": "migrate", "condition": "completed"},
                ],
            },
            "migrate": {"command": ["/bin/migrate"], "cwd": "/", **_DEFAULTS, "job": True},
            "queue": {"command": ["/bin/queue"], "cwd": "/", **_DEFAULTS, "notify": True, "start_timeout": "90s"},
        },
        [
            "2: After=db.service: depends_on, once it is a server of this file",
            "4: PartOf=queue@.service: depends_on, once it is a server of this file",
            "units/migrate.service:6: Nice=5: no equivalent",
            *("old.service:1: left out: there is no ExecStart in it", "[[server]]", 'name = "old"'),
        ],
        {
            "units/migrate.service":
                "[Unit]\nBefore=shop.service\n[Service]\nType=oneshot\nExecStart=/bin/migrate\nNice=5\n",
            "queue@.service": "[Service]\nType=notify\nExecStart=/bin/queue\n",
            "old.service": "[Unit]\nDescription=none\n",
        },
        given=("units/migrate.service", "queue@.service", "old.service"),
        warning="warning: left out: old.service:1: old: there is no ExecStart in it\n",
    ),
    **{
        f"{text} {dropped_in}": Case("a.service", text, files={"a.service.d/3.conf": dropped_in}, error=error, code=of)
        for text, dropped_in, error, of in [
            ("[Service]\n", "", f"a.service:1: there is no ExecStart in it{_IS_A_UNIT}", 5),
            ("[Service]\nExecStart=/bin/a\n", "[Service]\nExecStart=\n",
             f"a.service:1: there is no ExecStart in it{_IS_A_UNIT}", 5),
            ("[Service]\n\nodd \\\n line\n", "",
             "a.service:3: 'odd   line' is not NAME=VALUE\n  hint: is this a systemd unit?", 5),
            ("[Service]\nExecStart=/bin/a\n", "[Service]\nodd\n",
             "a.service.d/3.conf:2: 'odd' is not NAME=VALUE\n  hint: is this a systemd unit?", 5),
            ("[Service]\nExecStart=/bin/a 'open\n", "", f"no server could be taken over\n  hint: {_OPEN}", 1),
        ]
    },
}  # fmt: skip
