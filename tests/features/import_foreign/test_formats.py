"""Files of other tools become servers, with a remark at its line for what has no equivalent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .conftest import Import, assert_valid

FILES = Path(__file__).parent / "files"
# Each with its licence beside it, and the names of the servers.
PUBLIC = {
    "honcho/Procfile": ["web", "worker", "worker_low"],
    "gunicorn/supervisor.conf": ["gunicorn"],
    "gunicorn/gunicorn.service": ["gunicorn"],
    "gunicorn/dirty_example/docker-compose.yml": ["tests", "server", "integration-test", "stash-test"],
    "gunicorn/celery_alternative/docker-compose.yml": ["tests"],
    "gunicorn/asgi_framework_compat/docker-compose.yml": [
        "django", "fastapi", "starlette", "quart", "litestar", "blacksheep",
    ],
    "supervisor/issue-550.conf": ["print_env"],
    "supervisor/issue-565.conf": ["hello"],
    "supervisor/issue-733.conf": ["nonexistent"],
    "supervisor/issue-986.conf": ["echo"],
}  # fmt: skip


@pytest.mark.parametrize("file", PUBLIC)
def test_file_of_a_public_project_is_imported(imported: Import, tmp_path: Path, file: str) -> None:
    said = imported((FILES / file).read_text(), os.path.basename(file))
    assert list(said.servers) == PUBLIC[file]


def test_public_apps_of_gunicorns_asgi_worker_are_served(imported: Import) -> None:
    file = "gunicorn/asgi_framework_compat/docker-compose.yml"
    table = imported((FILES / file).read_text(), "compose.yml").servers["fastapi"]
    probe = {"http": "/health", "interval": "5s", "timeout": "3s", "fall_count_ko": 10}
    assert (table["bind"], table["app"], table["health"]) == (":8002", "app:app", {"readiness": probe})


def test_procfile(imported: Import) -> None:
    said = imported(
        "# comment\n"
        "web: uvicorn shop:app --host 0.0.0.0 --port ${PORT:-8000}\n"
        "node: node server.js --port $PORT\n"
        "worker: celery -A shop worker -c $CONCURRENCY\n"
        "release: ./manage.py migrate\n"
        "what is this\n",
        "Procfile",
    )
    after = [{"name": "release", "condition": "completed"}]
    assert said.servers == {
        "web": {"bind": ":5000", "app": "shop:app", "depends_on": after},
        "node": {
            "bind": "127.0.0.1:5100", "command": ["node", "server.js", "--port", "{port}"], "depends_on": after,
        },
        "worker": {"command": ["sh", "-c", "celery -A shop worker -c $CONCURRENCY"], "depends_on": after},
        "release": {"command": ["./manage.py", "migrate"], "job": True},
    }  # fmt: skip
    assert said.remarks == ["Procfile:6: not NAME: COMMAND: what is this"]


def test_web_process_that_reads_port_is_given_it(imported: Import) -> None:
    servers = imported("web: npm start\n", "Procfile.dev").servers
    assert servers["web"] == {
        "bind": "127.0.0.1:5000",
        "command": ["npm", "start"],
        "env": {"PORT": "{port}"},
    }


def test_variables_of_a_line_are_left_to_its_shell(imported: Import) -> None:
    servers = imported("w: echo ${HOME} '$X' && sleep 1\n", "Procfile").servers
    assert servers["w"]["command"] == ["sh", "-c", "echo $${HOME} '$X' && sleep 1"]


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
            "restart": {"limit": 3, "policy": "always", "backoff": {"initial": "500ms"}},
            "notify": True,
            "env": {"LEVEL": "debug", "MODE": "a b"},
            "stop_timeout": "1m30s",
            "limits": {"open_files": 65536, "memory": "512MiB"},
            "user": "shop:www-data",
        }
    }
    assert said.remarks == [
        "shop.service:3: After=postgresql.service: depends_on, once it is a server of this file",
        "shop.service:13: EnvironmentFile=-/etc/default/there-is-no-such-file: the file does not exist here",
        "shop.service:21: PrivateTmp=true: no equivalent",
    ]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("-/bin/sleep 5", ["/bin/sleep", "5"]),
        ("/bin/serve $OPTIONS ${MORE}", ["sh", "-c", "exec /bin/serve $OPTIONS $${MORE}"]),
        ("/bin/serve '$$5'", ["/bin/serve", "$5"]),
    ],
)
def test_command_of_a_unit(imported: Import, line: str, command: list[str]) -> None:
    servers = imported(f"[Service]\nExecStart={line}\n", "one.service").servers
    assert servers["one"] == {"cwd": "/", "command": command}


COMPOSE = """\
x-defaults: &defaults
  restart: unless-stopped
  environment: {LEVEL: "${LEVEL:-info}", TOKEN: , COST: "5$$"}

services:
  api:
    <<: *defaults
    build: ./api
    command: uvicorn api:app --host 0.0.0.0 --port 80
    ports: ["127.0.0.1:8080:80", "9000:9000"]
    env_file: [api.env]
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
    healthcheck:
      test: curl -f http://localhost:80/health || exit 1
      interval: 10s
      retries: 5
    deploy:
      replicas: 2
      resources: {limits: {memory: 512M}}
    volumes: ["data:/data"]
  front:
    build: {context: front}
    environment: ["API=http://api:80/v1", "PORT=3000"]
    ports: [3000:3000]
    depends_on: [api]
    stop_grace_period: 1m30s
  migrate:
    build: ./api
    command: ["python", "migrate.py"]
  db:
    image: postgres:16
"""


def test_compose(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "Dockerfile").write_text(
        'FROM node AS build\nCMD ["false"]\nFROM node\nENV NODE_ENV=production\nCMD ["npm", \\\n "start"]\n'
    )
    said = imported(COMPOSE, "docker-compose.yml")
    servers = said.servers
    assert list(servers) == ["api", "front", "migrate"]
    assert servers["api"] == {
        "bind": "127.0.0.1:8080",
        "app": "api:app",
        "cwd": "./api",
        "app_dir": "./api",
        "restart": "always",
        "env": {"LEVEL": "${LEVEL:-info}", "COST": "5$"},
        "env_file": ["api.env"],
        "health": {"readiness": {"http": "/health", "interval": "10s", "fall_count_ko": 5}},
        "workers": 2,
        "limits": {"memory": "512MiB"},
        "depends_on": [{"name": "migrate", "condition": "completed"}],
    }
    assert servers["front"] == {
        "bind": ":3000",
        "command": ["npm", "start"],
        "cwd": "front",
        "env": {"NODE_ENV": "production", "API": "http://127.0.0.1:8080/v1", "PORT": "{port}"},
        "stop_timeout": "1m30s",
        "depends_on": [{"name": "api", "condition": "started"}],
    }
    assert servers["migrate"] == {"command": ["python", "migrate.py"], "cwd": "./api", "job": True}
    for remark in (
        "docker-compose.yml:10: ports: 9000:9000: a server has one address",
        "docker-compose.yml:12: depends_on db: it is not among the servers",
        "docker-compose.yml:22: volumes: data:/data: no equivalent",
        'name = "db"',
    ):
        assert remark in said.remarks, remark
    assert "warning: left out: docker-compose.yml:32: db: no command" in said.err


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


def test_two_servers_with_one_address_are_not_both_written(imported: Import, tmp_path: Path) -> None:
    said = imported("[program:a]\ncommand=uvicorn a:app\n[program:b]\ncommand=uvicorn b:app\n", "s.conf")
    assert len(said.servers) == 1
    assert_valid(tmp_path, said.text)
    assert "warning: left out: s.conf:" in said.err


@pytest.mark.parametrize(
    ("name", "text", "remark"),
    [
        ("compose.yml", "services: {a: {command: sleep 1, ports: 80}}", "1: ports: a value of another type"),
        ("compose.yml", "services: {a: {command: sleep 1, labels: 5}}", "1: labels: a value of another type"),
        ("e.json", '{"apps": [{"script": "a.js", "env": []}]}', "1: env: a value of another type"),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nEnvironment='a\n",
            "3: Environment='a: it cannot be read",
        ),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nExecStartPre=/bin/b\nExecStartPre=/bin/c d\n",
            "4: ExecStartPre=/bin/c d: hooks.before_start is one command",
        ),
        (
            "a.service",
            "[Service]\nExecStart=/bin/a\nExecStopPost=+/bin/b\n",
            "3: ExecStopPost=+/bin/b: no equivalent of +",
        ),
        ("a.service", "[Service]\nExecStart=/bin/a\nUser=a b\n", '3: user = "a b": '),
        ("s.conf", "[program:a]\ncommand=a\numask=999\n", '3: umask = "999": '),
    ],
)
def test_value_that_cannot_be_taken_over_is_a_remark(
    imported: Import, name: str, text: str, remark: str
) -> None:
    said = imported(text, name)
    assert len(said.servers) == 1
    assert [each for each in said.remarks if each.startswith(f"{name}:{remark}")], said.remarks


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
    assert hooks == {"before_start": ["sh", "-c", "exec /bin/mkdir $${HOME}/x"]}, "a file's ${ is $${"


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
