"""Units of systemd become servers."""

from __future__ import annotations

import grp
import pwd
import socket
from pathlib import Path

import pytest

from .conftest import Import, assert_valid

# systemd's defaults, where poolctl's are others.
DEFAULTS = {"restart": "no", "stop_timeout": "90s", "stop_group": "together"}
UNIT = """\
[Unit]
Description=Shop
After=network.target postgresql.service
Requires=shop.socket
StartLimitBurst=3

[Service]
Type=notify
User=shop
Group=www-data
WorkingDirectory=/srv/shop
Environment="LEVEL=debug" 'MODE=a b'
EnvironmentFile=-/etc/default/there-is-no-such-file
ExecStart=/srv/shop/bin/serve --name %n \\
    --cost 100%%
Restart=always
RestartSec=500ms
TimeoutStopSec=1min 30s
LimitNOFILE=65536
MemoryMax=512M
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""


def test_systemd_unit(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "shop.socket").write_text("[Socket]\nListenStream=/run/shop.sock\n")
    said = imported(UNIT, "shop.service")
    assert said.servers == {
        "shop": {
            "bind": "unix:/run/shop.sock",
            "command": ["/srv/shop/bin/serve", "--name", "shop.service", "--cost", "100%"],
            "cwd": "/srv/shop",
            "restart": {
                "limit": 3, "window": "10s", "policy": "always", "backoff": {"initial": "500ms", "max": "500ms"},
            },
            "notify": True,
            "start_timeout": "90s",
            "env": {"LEVEL": "debug", "MODE": "a b"},
            "stop_timeout": "1m30s",
            "stop_group": "together",
            "limits": {"open_files": 65536, "memory": "512MiB"},
            "user": "shop:www-data",
        }
    }  # fmt: skip
    assert said.remarks == [
        "shop.service:3: After=postgresql.service: depends_on, once it is a server of this file",
        "shop.service:13: EnvironmentFile=-/etc/default/there-is-no-such-file: the file does not exist here",
        "shop.service:21: PrivateTmp=true: no equivalent",
    ]


@pytest.mark.parametrize(
    ("mode", "stop_group"), [("control-group", "together"), ("process", "leader"), ("mixed", "after")]
)
def test_processes_that_get_the_stop_signal_are_those_of_the_unit(
    imported: Import, mode: str, stop_group: str
) -> None:
    unit = f"[Service]\nExecStart={{}}\nKillMode={mode}\n"
    program = imported(unit.format("/bin/sh -c 'cd x && y'"), "a.service")
    assert (program.servers["a"]["stop_group"], program.remarks) == (stop_group, [])
    app = imported(unit.format("uvicorn shop:app"), "a.service")
    assert ("stop_group" not in app.servers["a"], app.remarks) == (True, [])


def test_mode_that_kills_no_process_has_no_equivalent(imported: Import) -> None:
    said = imported("[Service]\nExecStart=/bin/a\nKillMode=none\n", "a.service")
    assert said.remarks == ["a.service:3: KillMode=none: no equivalent"]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("-/bin/sleep 5", ["/bin/sleep", "5"]),
        ("/bin/serve $OPTIONS ${MORE}", ["sh", "-c", 'exec /bin/serve $OPTIONS "$${MORE}"']),
        ("/bin/serve '$$5'", ["/bin/serve", "$5"]),
        ("/bin/serve $$5 $MORE", ["sh", "-c", "exec /bin/serve '$5' $MORE"]),
        (
            "/bin/serve --x=${X}:${Y} a;b '' $MORE",
            ["sh", "-c", """exec /bin/serve --x="$${X}":"$${Y}" 'a;b' '' $MORE"""],
        ),
        (":/bin/serve $X ${Y}", ["/bin/serve", "$X", "$${Y}"]),
    ],
)
def test_command_of_a_unit(imported: Import, line: str, command: list[str]) -> None:
    servers = imported(f"[Service]\nExecStart={line}\n", "one.service").servers
    assert servers["one"] == {**DEFAULTS, "cwd": "/", "command": command}


def test_commands_around_a_unit_are_hooks(imported: Import, tmp_path: Path) -> None:
    text = """
        [Service]
        ExecStartPre=/bin/old
        ExecStartPre=
        ExecStart=/bin/a
        ExecStartPre=/bin/b --name=%N 'two words'
        ExecStopPost=-/bin/rm -r $RUNTIME_DIRECTORY
    """
    said = imported(text, "shop.service")
    assert said.servers["shop"]["hooks"] == {
        "before_start": ["/bin/b", "--name=shop", "two words"],
        "after_stop": ["sh", "-c", "/bin/rm -r $RUNTIME_DIRECTORY || true"],
    }
    assert_valid(tmp_path, said.text)
    of_variables = "[Service]\nExecStart=/bin/a\nExecStartPre=/bin/mkdir ${HOME}/x\n"
    hooks = imported(of_variables, "a.service").servers["a"]["hooks"]
    assert hooks == {"before_start": ["sh", "-c", 'exec /bin/mkdir "$${HOME}"/x']}, "a file's ${ is $${"


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        ("SocketMode=0660\nSocketUser=a\nSocketGroup=b", {"socket_mode": "0660", "socket_owner": "a:b"}),
        ("SocketMode=0660\nSocketGroup=web", {"socket_mode": "0660", "socket_owner": "root:web"}),
        ("SocketMode=0600", {"socket_mode": "0600", "socket_owner": "root"}),
    ],
)  # fmt: skip
def test_rights_of_a_socket_unit_are_those_of_the_server(
    imported: Import, tmp_path: Path, lines: str, keys: dict[str, str]
) -> None:
    (tmp_path / "a.socket").write_text(f"[Socket]\nListenStream=/run/a.sock\n{lines}\n")
    said = imported("[Unit]\nRequires=a.socket\n[Service]\nExecStart=/bin/a\n", "a.service")
    server = {"command": ["/bin/a"], "cwd": "/", "bind": "unix:/run/a.sock"}
    assert said.servers["a"] == {**DEFAULTS, **server, **keys}


def test_settings_of_a_unit_are_keys_or_remarks(
    imported: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.socket").write_text("[Socket]\nListenStream=8080\n")
    (tmp_path / "d.socket").write_text("[Socket]\nListenDatagram=8080\n")
    (tmp_path / "e.env").touch()
    said = imported(
        """\
; a comment
[Unit]
Documentation=x
Wants=a.socket b.socket network-online.target other.service more.service
PartOf=d.socket
After=systemd-tmpfiles.service dbus.service x.mount y.slice
ConditionPathExists=/x
[Service]
Type=notify-reload
ExecStart=@/bin/serve %n %N %p %h %t %i %%
Group=www
UMask=0077
WorkingDirectory=-/srv/%p
Restart=on-watchdog
StartLimitInterval=1h
StartLimitBurst=many
TimeoutSec=1min
TimeoutStartSec=infinity
KillSignal=INT
Environment="A=%n" B= C=x=y
Environment=D=1
EnvironmentFile=/etc/default/a
EnvironmentFile=-e.env
EnvironmentFile=-%h/none
MemoryHigh=64
LimitNOFILE=infinity
ExecReload=/bin/kill
ExecStopPost=:/bin/clean $X
ExecStartPre=!/bin/prepare
TimeoutStopSec=2x
MemoryMax=1.5G
NoNewPrivileges=\\
  true
[Install]
Also=b.service
""",
        "a.service",
    )
    home, run = "${HOME}", "${XDG_RUNTIME_DIR:-/run}"
    assert said.servers == {
        "a": {
            "bind": ":8080",
            "command": ["/bin/serve", "a", "a", home, run, "", "%"],
            "stop_group": "together",
            "cwd": "/srv/a",
            "notify": True,
            "umask": "0077",
            "restart": {"policy": "on-failure", "limit": 5, "window": "1h"},
            "stop_timeout": "1m",
            "start_timeout": "24h",
            "stop_signal": "SIGINT",
            "env": {"A": "a.service", "B": "", "C": "x=y", "D": "1"},
            "env_file": [{"path": "/etc/default/a", "expand": False}, {"path": "e.env", "expand": False}],
            "limits": {"memory": "64B"},
            "hooks": {"after_stop": ["/bin/clean", "$X"]},
            "user": "root:www",
        }
    }
    assert said.remarks == [
        f"a.service:{each}"
        for each in (
            "4: Wants=b.socket: write its ListenStream as bind",
            "4: Wants=other.service more.service: depends_on, once it is a server of this file",
            "5: PartOf=d.socket: write its ListenStream as bind",
            "7: ConditionPathExists=/x: no equivalent",
            "10: ExecStart=@/bin/serve: the program is called by its path",
            "14: Restart=on-watchdog: poolctl restarts it after other exits, too",
            "16: StartLimitBurst=many: no equivalent",
            "22: EnvironmentFile=/etc/default/a: it takes precedence over Environment=: take out of env what it sets",
            "24: EnvironmentFile=-%h/none: the file does not exist here",
            "26: LimitNOFILE=infinity: no equivalent",
            "27: ExecReload=/bin/kill: poolctl restart replaces the process, poolctl reload applies this file",
            "29: ExecStartPre=!/bin/prepare: no equivalent of !",
            "30: TimeoutStopSec=2x: no equivalent",
            "31: MemoryMax=1.5G: no equivalent",
            "32: NoNewPrivileges=true: no equivalent",
        )
    ]


@pytest.mark.parametrize(
    ("lines", "keys", "remarks"),
    [
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
        (["Environment=A=%H-%m"], {"env": {"A": f"{socket.gethostname()}-%m"}},
         ["3: Environment=A=%H-%m: %m: no equivalent"]),
        (["StandardOutput=append:/var/log/%p.log", "StandardError=append:/var/log/a.log"],
         {"log": {"path": "/var/log/a.log"}}, []),
        (["StandardOutput=file:/o", "StandardError=file:/e"], {"log": {"path": "/o"}},
         ["4: StandardError=file:/e: a server has one log, of both streams"]),
        (["StandardOutput=null", "StandardError=journal"], {},
         ["3: StandardOutput=null: a server has one log, of both streams"]),
        (["WorkingDirectory=~"], {"cwd": "~"}, []),
        (["WorkingDirectory=~", "User=root"], {"cwd": pwd.getpwnam("root").pw_dir, "user": "root"}, []),
        (["ExecStart=", "ExecStart=-/bin/b"], {"command": ["/bin/b"]}, ["4: ExecStart=-/bin/b: no equivalent of -"]),
        (["X-Own=1", "Description=a", "RemainAfterExit=yes"], {}, []),
        (["[Install]", "WantedBy=x.target", "Alias=b.service", "[X-Own]", "A=1", "[Timer]", "OnCalendar=daily"], {},
         ["9: [Timer]: not a section of a service"]),
        (["Restart=sometimes"], {}, ["3: Restart=sometimes: no equivalent"]),
        (["Wants=x.socket"], {"bind": "127.0.0.1:9000"}, []),
        (["ExecStopPost=/bin/b", "ExecStopPost="], {}, []),
        (["ExecStopPost="], {}, []),
        (["ExecStopPost=:/bin/b $$X"], {"hooks": {"after_stop": ["/bin/b", "$$X"]}}, []),
    ],
)  # fmt: skip
def test_setting_of_a_service_is_a_key_or_a_remark(
    imported: Import, tmp_path: Path, lines: list[str], keys: dict[str, object], remarks: list[str]
) -> None:
    (tmp_path / "x.socket").write_text("[Socket]\nListenStream=127.0.0.1:9000\n")
    said = imported("\n".join(["[Service]", "ExecStart=/bin/a", *lines, ""]), "a.service")
    assert said.servers == {"a": {"command": ["/bin/a"], "cwd": "/", **DEFAULTS, **keys}}
    assert said.remarks == [f"a.service:{each}" for each in remarks]


@pytest.mark.parametrize("kind", ["oneshot", "simple"])
def test_commands_since_the_last_empty_one_are_those_of_a_oneshot_else_the_first_counts(
    imported: Import, kind: str
) -> None:
    starts = "ExecStart=/bin/one\nExecStart=\nExecStart=/bin/two\nExecStart=/bin/three\n"
    said = imported(f"[Service]\nType={kind}\n{starts}", "b@.service")
    command = ["/bin/two"]
    if kind == "oneshot":
        command = ["sh", "-c", "/bin/two && /bin/three"]
    job = {"job": True} if kind == "oneshot" else {}
    assert said.servers == {"b": {"command": command, "cwd": "/", **DEFAULTS, **job}}
    remarks = [] if job else ["b@.service:6: ExecStart=/bin/three: a server has one command"]
    assert said.remarks == remarks


@pytest.mark.parametrize(
    ("text", "code", "message", "hint"),
    [
        ("[Service]\n", 5, "a.service:1: there is no ExecStart in it", "is this the unit of a service?"),
        ("[Service]\nExecStart=/bin/a\nExecStart=\n", 5, "a.service:1: there is no ExecStart in it",
         "is this the unit of a service?"),
        ("[Service]\n\nodd \\\n line\n", 5, "a.service:3: 'odd   line' is not NAME=VALUE", "is this a systemd unit?"),
        ("[Service]\nExecStart=/bin/a 'open\n", 1, "no server could be taken over",
         "a.service:2: a: its command cannot be read (No closing quotation)"),
    ],
)  # fmt: skip
def test_unit_that_cannot_be_taken_over_is_refused(
    imported: Import, text: str, code: int, message: str, hint: str
) -> None:
    said = imported(text, "a.service", valid=False)
    assert (said.code, said.err) == (code, f"error: {message}\n  hint: {hint}\n")


@pytest.mark.parametrize(
    ("name", "line", "command", "remarks"),
    [
        ("w@3.service", "%i %N %n %p", ["3", "w@3", "w@3.service", "w"], []),
        ("w@a-b\\x2dc.service", "%I", ["a/b-c"], []),
        ("w@.service", "%i", ["1"], []),
        ("w-x@.service", "--n=%j", ["--n=x"], []),
    ],
)
def test_instance_of_a_template_is_known_from_its_name_or_its_default(
    imported: Import, name: str, line: str, command: list[str], remarks: list[str]
) -> None:
    said = imported(f"[Service]\nExecStart=/bin/a {line}\n[Install]\nDefaultInstance=1\n", name)
    (server,) = said.servers.values()
    assert (server["command"], said.remarks) == (["/bin/a", *command], remarks)


def test_instance_of_a_template_without_one_is_a_variable(imported: Import) -> None:
    said = imported("[Service]\nExecStart=/bin/a\nEnvironment=N=%i\n", "w@.service")
    assert said.servers["w"]["env"] == {"N": "${INSTANCE}"}
    assert said.remarks == ["w@.service:3: Environment=N=%i: %i: INSTANCE has to be set, or written here"]
    assert "it refers to variables that are not set here: INSTANCE" in said.err


def test_stop_of_an_app_is_limited_by_its_own_option_unless_the_unit_has_one(imported: Import) -> None:
    unit = "[Service]\nExecStart=/bin/uvicorn a:b --timeout-graceful-shutdown 8\n"
    assert imported(unit, "a.service").servers["a"]["stop_timeout"] == "10s"
    assert imported(unit + "TimeoutStopSec=20\n", "a.service").servers["a"]["stop_timeout"] == "20s"


def test_app_of_a_unit_is_found_in_its_working_directory(imported: Import) -> None:
    unit = "[Service]\nExecStart=/venv/bin/uvicorn a:b --env-file e\nWorkingDirectory=/srv/a\nEnvironmentFile=/f\n"
    server = imported(unit, "a.service").servers["a"]
    assert server["env_file"] == ["/srv/a/e", {"path": "/f", "expand": False}]
    assert (server["cwd"], server["app_dir"], server["python"]) == ("/srv/a", "/srv/a", "/venv/bin/python3")


def test_socket_that_activates_a_unit_is_the_one_of_its_name(imported: Import, tmp_path: Path) -> None:
    lines = "ListenStream=%t/a.sock\nListenStream=80\nBacklog=5\nAccept=no\nService=a.service\n"
    (tmp_path / "a.socket").write_text(f"[Unit]\nDescription=x\n[Socket]\n{lines}")
    (tmp_path / "b.socket").write_text("[Socket]\nListenStream=81\n")
    unit = "[Service]\nExecStart=/bin/a\nSockets=a.socket b.socket\n"
    for text in (unit, unit.replace("Sockets=a.socket b.socket", "Nice=1")):
        said = imported(text, "a.service")
        assert said.servers["a"]["bind"] == "unix:${XDG_RUNTIME_DIR:-/run}/a.sock"
        assert [
            each.partition(" ")[2] for each in said.remarks if "Nice" not in each and "b.socket" not in each
        ] == [
            "a.socket: Backlog=5: no equivalent",
            "a.socket: ListenStream=80: a server has one address",
        ]
    assert "a.service:3: Sockets=b.socket: a server has one address" in imported(unit, "a.service").remarks


def test_timer_of_a_unit_is_named(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "a.timer").write_text("[Timer]\nOnCalendar=daily\n")
    said = imported("[Service]\nType=oneshot\nExecStart=/bin/a\n", "a.service")
    assert said.remarks == ["a.service:3: a.timer: write its OnCalendar as every, of a job"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (r"a\x20b '\t' \u00e9\101", ["a b", "\t", "éA"]),
        (r"""'it\'s' "a\"b" c'd e'f""", ["it's", 'a"b', "cd ef"]),
        (r"'\d+\.x' a\.b", [r"\d+\.x", r"a\.b"]),
        (r"""a\;b ';' \; "" """, [r"a\;b", ";", ";", ""]),
        (r"'%p 1' --n=%p", ["a 1", "--n=a"]),
    ],
)
def test_quotes_and_escapes_of_a_unit_are_those_of_systemd(
    imported: Import, value: str, words: list[str]
) -> None:
    said = imported(f"[Service]\nExecStart=/bin/a {value}\nEnvironment=\"A=\\x41 'b'\"\n", "a.service")
    assert said.servers["a"]["command"] == ["/bin/a", *words]
    assert said.servers["a"]["env"] == {"A": "A 'b'"}


def test_oneshot_runs_its_commands_one_after_the_other(imported: Import) -> None:
    starts = "ExecStart=/bin/a $X 'b c' ; -/bin/d %p\nExecStart=+/bin/e\n"
    said = imported(f"[Service]\nType=oneshot\n{starts}", "one.service")
    script = "/bin/a $X 'b c' && { /bin/d one || true; } && /bin/e"
    assert said.servers["one"]["command"] == ["sh", "-c", script]
    assert said.remarks == ["one.service:4: ExecStart=+/bin/e: no equivalent of +"]


def test_variable_of_a_shell_stays_in_its_script(imported: Import) -> None:
    said = imported("[Service]\nExecStart=/bin/sh -c 'cd /x; a \"$HOME\" $$b'\n", "a.service")
    assert said.servers["a"]["command"] == ["/bin/sh", "-c", 'cd /x; a "$HOME" $b']


def test_file_of_variables_takes_precedence_over_those_of_the_unit(imported: Import, tmp_path: Path) -> None:
    for name in ("1.env", "2.env"):
        (tmp_path / name).write_text("LEVEL=file\n")
    unit = f"[Service]\nExecStart=/bin/a\nEnvironment=LEVEL=unit MODE=x\nEnvironmentFile={tmp_path}/*.env\n"
    said = imported(unit, "a.service")
    assert said.servers["a"]["env"] == {"MODE": "x"}
    assert [file["path"] for file in said.servers["a"]["env_file"]] == [
        f"{tmp_path}/1.env",
        f"{tmp_path}/2.env",
    ]
    assert said.remarks == []


def test_drop_ins_change_a_unit(imported: Import, tmp_path: Path) -> None:
    for unit, name, lines in (
        ("w@.service", "1.conf", "ExecStart=\nExecStart=/bin/b"),
        ("w@.service", "2.conf", "Nice=5"),
        ("w@x.service", "2.conf", "Environment=A=2\nIOWeight=5"),
    ):
        (tmp_path / f"{unit}.d").mkdir(exist_ok=True)
        (tmp_path / f"{unit}.d" / name).write_text(f"[Service]\n{lines}\n")
    said = imported("[Service]\nExecStart=/bin/a\nEnvironment=A=1\nEnvironment=B=1\n", "w@x.service")
    assert said.servers["w-x"]["command"] == ["/bin/b"]
    assert said.servers["w-x"]["env"] == {"A": "2", "B": "1"}
    assert said.remarks == ["w@x.service.d/2.conf:3: IOWeight=5: no equivalent"]
    (tmp_path / "w@x.service.d" / "3.conf").write_text("[Service]\nodd\n")
    refused = imported("[Service]\nExecStart=/bin/a\n", "w@x.service", valid=False)
    assert refused.err.startswith("error: w@x.service.d/3.conf:2: 'odd' is not NAME=VALUE")


def test_user_and_group_may_be_numbers(imported: Import) -> None:
    name, group = pwd.getpwuid(1).pw_name, grp.getgrgid(2).gr_name
    said = imported("[Service]\nExecStart=/bin/a\nUser=1\nGroup=2\n", "a.service")
    assert said.servers["a"]["user"] == f"{name}:{group}"
    said = imported("[program:a]\ncommand=a\nuser=1\ndirectory=~root/x\n", "s.conf")
    assert (said.servers["a"]["user"], said.servers["a"]["cwd"]) == (name, f"{pwd.getpwuid(0).pw_dir}/x")


def test_socket_unit_does_not_move_a_program_that_opens_an_address_of_its_own(
    imported: Import, tmp_path: Path
) -> None:
    (tmp_path / "a.socket").write_text("[Socket]\nListenStream=80\n")
    said = imported("[Service]\nExecStart=/bin/sh -c 'x; exec granian a:b; true'\n", "a.service")
    assert said.servers["a"]["bind"] == "127.0.0.1:8000"
    assert said.remarks == ["a.service:2: a.socket: the program opens an address of its own"]


def test_units_together_wait_for_each_other_as_in_systemd(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "migrate.service").write_text(
        "[Unit]\nBefore=shop.service\n[Service]\nType=oneshot\nExecStart=/bin/migrate\nNice=5\n"
    )
    (tmp_path / "queue@.service").write_text("[Service]\nType=notify\nExecStart=/bin/queue\n")
    (tmp_path / "old.service").write_text("[Unit]\nDescription=none\n")
    said = imported(
        "[Unit]\nAfter=queue@.service db.service migrate.service\nRequires=queue@.service\nPartOf=queue@.service\n"
        "[Service]\nExecStart=/bin/shop\n",
        "shop.service", "units/migrate.service", "queue@.service", "old.service",
    )  # fmt: skip
    assert said.servers.keys() == {"shop", "migrate", "queue"}
    assert said.servers["shop"]["depends_on"] == [
        {"name": "queue", "condition": "ready"}, {"name": "migrate", "condition": "completed"},
    ]  # fmt: skip
    assert "depends_on" not in said.servers["migrate"]
    assert said.remarks[:3] == [
        "shop.service:2: After=db.service: depends_on, once it is a server of this file",
        "shop.service:4: PartOf=queue@.service: depends_on, once it is a server of this file",
        "units/migrate.service:6: Nice=5: no equivalent",
    ]
    assert "warning: left out: old.service:1: old: there is no ExecStart in it\n" in said.err
