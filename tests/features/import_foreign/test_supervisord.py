"""Files of supervisord become servers."""

from __future__ import annotations

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
        "depends_on": [{"name": "queue", "condition": "started"}],
    }
    assert web["restart"] == {"policy": "always", "limit": 5}
    queue = servers["queue"]
    assert (queue["workers"], queue["disabled"], queue["restart"]) == (3, True, "on-failure")
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


@pytest.mark.parametrize(("seconds", "remarked"), [("0", False), ("1", False), ("10", True)])
def test_time_that_a_program_has_to_run_is_remarked_if_it_is_another(
    imported: Import, seconds: str, remarked: bool
) -> None:
    said = imported(f"[program:a]\ncommand=a\nstartsecs={seconds}\n", "s.conf")
    assert any(f"startsecs={seconds}" in remark for remark in said.remarks) is remarked
