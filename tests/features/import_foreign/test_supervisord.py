"""Files of supervisord become servers."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert list(servers) == ["web", "queue", "tornado-0", "tornado-1"]
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
    assert web["restart"] == {"policy": "always", "limit": 5}
    queue = servers["queue"]
    assert (queue["workers"], queue["on_demand"], queue["restart"]) == (3, True, "on-failure")
    assert servers["tornado-1"]["command"] == ["python", "app.py", "--port=8001"]
    assert "supervisord.conf:17: stdout_events_enabled=true: no equivalent" in said.remarks
    assert "supervisord.conf:34: [eventlistener:mail]: no equivalent" in said.remarks


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


@pytest.mark.parametrize(("seconds", "ready_after"), [("0", None), ("1", None), ("10", "10s")])
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
    included = [
        f"s.conf:9: {tmp_path}/{name} is included: its programs need an import of their own"
        for name in ("extra/a.conf", "extra/b.conf", "more.conf")
    ]
    others = [
        "s.conf:10: [fcgi-program:php]: no equivalent",
        "s.conf:21: [sandbox]: not a section of supervisord",
    ]
    assert said.remarks == [*included, *others]


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
    assert said.remarks == []


@pytest.mark.parametrize(
    ("lines", "keys", "remarks"),
    [
        (["autostart=TRUE", "autorestart=false", "stopsignal=term"], {"restart": "no"}, []),
        (["autorestart=on", "startretries=4"], {"restart": {"policy": "always", "limit": 4}}, []),
        (["startretries=4", "autorestart=on"], {"restart": {"policy": "always", "limit": 4}}, []),
        (["startretries=4"], {"restart": {"policy": "on-failure", "limit": 4}}, []),
        (["startretries=many"], {}, []),
        (["stdout_logfile=AUTO", "stdout_events_enabled=false", "exitcodes=0"], {}, []),
        (["stopasgroup=true", "killasgroup=true"], {"stop_group": "together"}, []),
        (["stopasgroup=false", "killasgroup=true"], {}, []),
        (["stdout_logfile=/dev/fd/1", "stderr_logfile=/dev/fd/2", "stdout_logfile_maxbytes=5MB"], {}, []),
        (["exitcodes=0,2"], {}, ["3: exitcodes=0,2: no equivalent"]),
        (["stdout_syslog=true"], {}, ["3: stdout_syslog=true: no equivalent"]),
        (["stderr_logfile=syslog"], {}, ["3: stderr_logfile=syslog: no equivalent"]),
        (["nodaemon=1"], {}, ["3: nodaemon=1: no equivalent"]),
        (["stderr_logfile=/e"], {}, ["3: stderr_logfile=/e: a server has one log, of both streams"]),
        (["directory=%(nothing)s", "umask=022"], {"umask": "022"},
         ["3: directory=%(nothing)s: an expression that is not understood"]),
        (["stdout_logfile=/x", "stdout_logfile_maxbytes=0", "stdout_logfile_backups=many"],
         {"log": {"path": "/x", "keep": 10}}, []),
        (["stdout_logfile=/x", "stdout_logfile_maxbytes=10"], {"log": {"path": "/x", "max_size": "10"}}, []),
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
        "s.conf:5: left out: its command cannot be read (No closing quotation)",
        "[[server]]",
        'name = "g"',
        'command = ["sh", "-c", "g \'open"]',
    ]


def test_server_waits_for_the_servers_of_the_next_lower_priority(imported: Import) -> None:
    text = """\
[program:c]
command=c
priority=30
[program:a]
command=a
priority=-1
[program:b]
command=b
priority=20
[program:d]
command=d
priority=30
[program:n]
command=n %(process_num)d
numprocs=2
[program:e]
command=e
priority=high
[program:f]
command=f
priority=1000
[program:g]
command=g
priority=25
autostart=false
[group:x y,z]
programs=a, n ,c
"""
    found = imported(text, "s.conf").servers
    waits = {name: [each["name"] for each in keys.get("depends_on", [])] for name, keys in found.items()}
    last = ["n-0", "n-1", "e"]
    assert waits == {
        "c": ["b"], "a": [], "b": ["a"], "d": ["b"], "n-0": ["c", "d"], "n-1": ["c", "d"], "e": ["c", "d"], "f": last,
        "g": [],
    }  # fmt: skip
    assert {each["condition"] for keys in found.values() for each in keys.get("depends_on", [])} == {
        "started"
    }
    tags = {name: keys["tags"] for name, keys in found.items() if "tags" in keys}
    assert tags == {"c": ["x-y-z"], "a": ["x-y-z"], "n-0": ["n", "x-y-z"], "n-1": ["n", "x-y-z"]}


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
