"""Files of supervisord become servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.features.import_foreign._supervisord import ADVICE

from .conftest import Import

SUPERVISORD = """\
[supervisord]
environment=ZONE="eu"

[program:web]
command=/srv/venv/bin/gunicorn -b 127.0.0.1:8001 shop.wsgi ; the shop
directory=/srv/shop
user=www-data
autorestart=true
startretries=5
stopsignal=QUIT
stopwaitsecs=60
priority=20
environment=LEVEL="info,warning",KEY='%(ENV_SECRET)s'
stdout_logfile=/var/log/%(program_name)s.log
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=3
stdout_events_enabled=true

[program:queue]
command=python queue.py
numprocs=3
process_name=%(program_name)s_%(process_num)02d
autostart=false
autorestart=unexpected
priority=10

[program:tornado]
command=python app.py --port=80%(process_num)02d
numprocs=2

[group:shop]
programs=web,queue

[eventlistener:mail]
command=mail
"""


def test_supervisord(imported: Import) -> None:
    said = imported(SUPERVISORD, "supervisord.conf")
    servers = said.servers
    assert list(servers) == ["queue", "web", "tornado-0", "tornado-1"], "by priority"
    web = servers["web"]
    assert web | {"restart": 0, "stop_signal": 0} == {
        "bind": "127.0.0.1:8001",
        "command": ["/srv/venv/bin/gunicorn", "shop.wsgi"],
        "cwd": "/srv/shop",
        "user": "www-data",
        "restart": 0,
        "stop_signal": 0,
        "stop_timeout": "60s",
        "env": {"ZONE": "eu", "LEVEL": "info,warning", "KEY": "${SECRET}"},
        "log": {"path": "/var/log/web.log", "max_size": "20MiB", "keep": 3},
        "tags": ["shop"],
    }
    assert web["restart"] == "always"
    assert f"supervisord.conf:9: startretries=5: {ADVICE['startretries']}" in said.remarks
    queue = servers["queue"]
    assert (queue["workers"], queue["on_demand"], queue["restart"]) == (3, True, "on-failure")
    assert servers["tornado-1"]["command"] == ["python", "app.py", "--port=8001"]
    assert "supervisord.conf:17: stdout_events_enabled=true: no equivalent" in said.remarks
    listener = "[[notify]] runs a command for events, mandatory ends the pool with a server"
    assert f"supervisord.conf:34: [eventlistener:mail]: {listener}" in said.remarks


def test_signal_and_umask_of_a_program(imported: Import) -> None:
    text = "[program:a]\ncommand=a\nstopsignal=QUIT\numask=0027\n"
    assert imported(text, "s.conf").servers["a"] == {
        "command": ["a"],
        "stop_signal": "SIGQUIT",
        "umask": "0027",
    }
    unit = "[Service]\nExecStart=/bin/a\nKillSignal=2\nUMask=0077\n"
    found = imported(unit, "a.service").servers["a"]
    assert (found["stop_signal"], found["umask"]) == ("SIGINT", "0077")


@pytest.mark.parametrize(("seconds", "ready_after"), [("0", "0s"), ("1", None), ("10", "10s")])
def test_time_that_a_program_has_to_run_is_taken_over(
    imported: Import, seconds: str, ready_after: str | None
) -> None:
    said = imported(f"[program:a]\ncommand=a\nstartsecs={seconds}\n", "s.conf")
    assert said.servers["a"].get("ready_after") == ready_after


def test_time_that_a_program_with_a_port_has_to_run_is_remarked(imported: Import) -> None:
    said = imported("[program:a]\ncommand=uvicorn a:b --port 8001\nstartsecs=10\n", "s.conf")
    assert "ready_after" not in said.servers["a"]
    assert any("ready_after = 10s" in remark or 'ready_after = "10s"' in remark for remark in said.remarks)


def test_sections_without_equivalent_are_remarks_and_settings_of_the_daemon_are_inherited(
    imported: Import, tmp_path: Path
) -> None:
    (tmp_path / "extra").mkdir()
    for name in ("extra/b.conf", "extra/a.conf", "more.conf"):
        (tmp_path / name).touch()
    said = imported(
        """\
[unix_http_server]
file=/run/s.sock
[supervisord]
environment=ZONE="eu"
directory=/srv
umask=022
logfile=/var/log/supervisord.log
[include]
files = extra/*.conf %(here)s/more.conf none/*.conf
[fcgi-program:php]
command=php
[program:web]
command: python
  web.py   ; the shop
  --port 80
umask=027
environment=A="x,y", B='%(ENV_HOME)s/a' ,C=%(program_name)s-%(group_name)s
[program:other]
command=other

[sandbox]
color=blue
""",
        "s.conf",
    )
    assert said.servers == {
        "web": {
            "command": ["python", "web.py", "--port", "80"],
            "env": {"ZONE": "eu", "A": "x,y", "B": "${HOME}/a", "C": "web-web"},
            "cwd": "/srv",
            "umask": "027",
        },
        "other": {"command": ["other"], "env": {"ZONE": "eu"}, "cwd": "/srv", "umask": "022"},
    }
    assert said.remarks == [
        "s.conf:9: none/*.conf: there is no such file",
        "s.conf:10: [fcgi-program:php]: no equivalent",
        "s.conf:21: [sandbox]: not a section of supervisord",
    ]


def test_programs_of_included_files_are_imported_too(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "b.conf").write_text(
        "[program:b]\ncommand=%(here)s/b\nexitcodes=3\n[program:a]\nnumprocs=2\n[odd]\nx=1\n"
    )
    (tmp_path / "conf.d" / "c.conf").write_text("[group:g]\nprograms=a,b\n")
    main = "[supervisord]\nuser=nobody\n[program:a]\ncommand=%(here)s/a\n[include]\nfiles=conf.d/*\n"
    said = imported(main, "s.conf")
    shared = {"user": "nobody", "tags": ["g"]}
    assert said.servers == {
        "a": {"command": [f"{tmp_path}/a"], "workers": 2, **shared},
        "b": {"command": [f"{tmp_path}/conf.d/b"], **shared},
    }
    assert said.remarks == [
        "conf.d/b.conf:6: [odd]: not a section of supervisord",
        "conf.d/b.conf:3: exitcodes=3: no equivalent",
    ]
    (tmp_path / "conf.d" / "b.conf").write_text("odd line\n")
    refused = imported(main, "s.conf", valid=False)
    assert refused.err.startswith("error: conf.d/b.conf:1: 'odd line' is not KEY=VALUE")


def test_file_of_included_programs_alone_is_imported(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("[program:a]\ncommand=a\n")
    said = imported("[include]\nfiles=a.conf\n", "s.conf")
    assert said.servers == {"a": {"command": ["a"]}}


def test_sections_of_one_name_are_one_program(imported: Import) -> None:
    text = "[program:a]\ncommand=a\nnumprocs=2\n[program:b]\ncommand=b\n[program:a]\ncommand=c\n"
    assert imported(text, "s.conf").servers == {
        "a": {"command": ["c"], "workers": 2},
        "b": {"command": ["b"]},
    }


def test_program_is_several_servers_only_if_its_command_has_the_number_of_the_process(
    imported: Import, tmp_path: Path
) -> None:
    said = imported(
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
[program:odd]
command=odd %(process_num)d
numprocs=two
numprocs_start=first
""",
        "s.conf",
    )
    assert said.servers == {
        "one": {"command": ["one", "0"]},
        "many-5": {"command": ["many", "05", "of", "2", "in", str(tmp_path)], "tags": ["many"]},
        "many-6": {"command": ["many", "06", "of", "2", "in", str(tmp_path)], "tags": ["many"]},
        "same": {"command": ["same"], "workers": 2},
        "odd": {"command": ["odd", "0"]},
    }
    assert said.remarks == ["s.conf:13: numprocs=two: no equivalent"]


A_JOB = 'startsecs=0: a job, as it may end at once; for a program that runs on, ready_after = "0s"'


@pytest.mark.parametrize(
    ("lines", "keys", "remarks"),
    [
        (["autostart=TRUE", "autorestart=false", "stopsignal=term"],
         {"restart": "no", "stop_signal": "SIGTERM"}, []),
        (["autorestart=maybe"], {}, ["3: autorestart=maybe: no equivalent"]),
        (["autorestart=false", "startsecs=0"], {"restart": "no", "job": True}, [f"4: {A_JOB}"]),
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
        (["startretries=4"], {}, [f"3: startretries=4: {ADVICE['startretries']}"]),
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
    ],
)  # fmt: skip
def test_setting_of_a_program_is_a_key_or_a_remark(
    imported: Import, lines: list[str], keys: dict[str, object], remarks: list[str]
) -> None:
    said = imported("\n".join(["[program:a]", "command=a", *lines, ""]), "s.conf")
    assert said.servers == {"a": {"command": ["a"], **keys}}
    assert said.remarks == [f"s.conf:{each}" for each in remarks]


def test_percent_sign_and_reference_of_a_shell_stay_as_they_are(imported: Import) -> None:
    said = imported("[program:b]\ncommand=b 100%% %%(here)s '${HOME}'\n", "s.conf")
    assert said.servers["b"]["command"] == ["b", "100%", "%(here)s", "$${HOME}"]


def test_program_without_a_readable_command_is_left_out(imported: Import) -> None:
    text = "[program:a]\ncommand=a\n[program:f]\ndirectory=/srv\n[program:g]\ncommand=g 'open\n"
    said = imported(text, "s.conf")
    assert list(said.servers) == ["a"]
    assert said.remarks == [
        "s.conf:3: left out: it has no command",
        "[[server]]",
        'name = "f"',
        'cwd = "/srv"',
        "s.conf:5: left out: its command cannot be read (No closing quotation)",
        "[[server]]",
        'name = "g"',
        'command = ["sh", "-c", "g \'open"]',
    ]


def test_priority_orders_the_servers_and_is_no_condition(imported: Import) -> None:
    text = """\
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
"""
    said = imported(text, "s.conf")
    assert list(said.servers) == ["a", "g", "c", "n-0", "n-1", "e"]
    assert not any("depends_on" in server for server in said.servers.values())
    tags = {name: keys["tags"] for name, keys in said.servers.items() if "tags" in keys}
    assert tags == {"c": ["x-y-z"], "a": ["x-y-z"], "n-0": ["n", "x-y-z"], "n-1": ["n", "x-y-z"]}
    assert [each for each in said.remarks if "priority=3:" in each], "that of the group"


@pytest.mark.parametrize("key", ["environment=N=%(process_num)d", "directory=/srv/%(process_num)02d"])
def test_program_is_several_servers_if_a_setting_has_the_number_of_the_process(
    imported: Import, key: str
) -> None:
    text = f"[program:a]\ncommand=a\nnumprocs=2\nprocess_name=a_%(process_num)02d\n{key}\n"
    found = imported(text, "s.conf").servers
    assert list(found) == ["a-0", "a-1"]
    assert found["a-0"] != found["a-1"]


def test_settings_of_supervisord_itself_apply_to_its_programs_or_are_remarks(imported: Import) -> None:
    text = """\
[supervisord]
user=nobody
environment=A=1
nodaemon=true
minfds=65536
logfile=/l
[inet_http_server]
port=9001
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=x
[include]
files=
other=x
[program:a]
command=a
[program:b]
command=uvicorn b:app
user=root
environment=B=2
"""
    said = imported(text, "s.conf")
    assert said.servers["a"] == {"command": ["a"], "user": "nobody", "env": {"A": "1"}}
    of_b = {"app": "b:app", "bind": "127.0.0.1:8000", "restart": "on-failure"}
    assert said.servers["b"] == {**of_b, "user": "root", "env": {"A": "1", "B": "2"}}
    assert said.remarks == [
        "s.conf:5: minfds=65536: limits = { open_files } of a server",
        "s.conf:7: [inet_http_server]: [dashboard] has an address for browsers",
        "s.conf:13: other=x: no equivalent",
    ]


def test_file_without_a_program_names_the_files_that_have_none_either(
    imported: Import, tmp_path: Path
) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.conf").touch()
    said = imported("[supervisord]\n[include]\nfiles=conf.d/*.conf x/*\n", "s.conf", valid=False)
    hint = "there is none in conf.d/*.conf x/* either"
    assert (said.code, said.err) == (
        5,
        f"error: s.conf:1: there is no [program:NAME] in it\n  hint: {hint}\n",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[supervisord]\n", "s.conf:1: there is no [program:NAME] in it"),
        ("[program:a]\ncommand=a\n\nodd line\n", "s.conf:4: 'odd line' is not KEY=VALUE"),
    ],
)
def test_file_of_another_kind_is_refused_with_its_line(imported: Import, text: str, message: str) -> None:
    said = imported(text, "s.conf", valid=False)
    assert (said.code, said.err) == (5, f"error: {message}\n  hint: is this a supervisord.conf?\n")
