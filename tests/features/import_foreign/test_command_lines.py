"""Command lines of uvicorn and gunicorn become servers; what has no equivalent is named."""

from __future__ import annotations

import re
from typing import Any

import pytest

from poolctl.cli.main import main

from .conftest import Import


@pytest.mark.parametrize(
    ("line", "name", "keys"),
    [
        ("uvicorn shop.users:app", "users", {"bind": "127.0.0.1:8000", "app": "shop.users:app"}),
        (
            "uvicorn main:make --factory --host 0.0.0.0 --port 80 --workers 4 --root-path /api",
            "main",
            {"bind": ":80", "app": "main:make", "factory": True, "workers": 4, "http": {"root_path": "/api"}},
        ),
        (
            "python3 -m uvicorn main:app --uds /run/app.sock --app-dir src --env-file prod.env",
            "main",
            {"bind": "unix:/run/app.sock", "app": "main:app", "app_dir": "src", "env_file": "prod.env"},
        ),
        (
            "uvicorn main:app --ssl-certfile c.pem --ssl-keyfile k.pem --ssl-ca-certs ca.pem --ssl-cert-reqs 2",
            "main",
            {
                "bind": "127.0.0.1:8000", "app": "main:app",
                "tls": {"cert": "c.pem", "key": "k.pem", "ca": "ca.pem", "client_auth": "required"},
            },
        ),
        (
            "uvicorn main:app --proxy-headers --timeout-keep-alive 5 --timeout-graceful-shutdown 8 --access-log",
            "main",
            {
                "bind": "127.0.0.1:8000", "app": "main:app", "stop_timeout": "10s",
                "http": {
                    "keep_alive": "5s", "trusted_proxies": ["127.0.0.1"], "proxy_headers": True, "access_log": True,
                },
            },
        ),
        (
            "/srv/venv/bin/uvicorn main:app --host ::1 --limit-concurrency 10 --limit-max-requests=1000",
            "main",
            {
                "bind": "[::1]:8000", "app": "main:app", "http": {"max_concurrency": 10, "max_requests": 1000},
                "python": "/srv/venv/bin/python3",
            },
        ),
        (
            "gunicorn -w 4 app:app -b :8000",
            "app",
            {"bind": ":8000", "command": ["gunicorn", "-w", "4", "app:app"]},
        ),
        (
            "gunicorn --bind=unix:/run/shop.sock --daemon --threads 4 shop.wsgi:application",
            "wsgi",
            {"bind": "unix:/run/shop.sock", "command": ["gunicorn", "--threads", "4", "shop.wsgi:application"]},
        ),
        (
            "gunicorn main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:8000 -t 60 --graceful-timeout 30",
            "main",
            {
                "bind": ":8000", "app": "main:app", "workers": 4, "stop_timeout": "38s",
                "recovery": {"stuck_after": "60s"},
            },
        ),
        (
            "gunicorn main -k uvicorn_worker.UvicornH11Worker --preload --chdir src -e LEVEL=info -u web -g www",
            "gunicorn",
            {
                "bind": "127.0.0.1:8000", "app": "main:application", "cwd": "src", "preload": True,
                "http": {"implementation": "h11"}, "app_dir": "src", "user": "web:www", "env": {"LEVEL": "info"},
            },
        ),
        (
            "env LEVEL=debug uv run gunicorn main:make() -k asgi -b [::]:9000",
            "main",
            {"env": {"LEVEL": "debug"}, "bind": "[::]:9000", "app": "main:make", "factory": True},
        ),
        ("celery -A shop worker", "celery", {"command": ["celery", "-A", "shop", "worker"]}),
    ],
)  # fmt: skip
def test_command_line_becomes_a_server(imported: Import, line: str, name: str, keys: dict[str, Any]) -> None:
    assert imported(line).servers == {name: keys}


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("uvicorn main:app --reload", "--reload: poolctl run --watch reloads the code"),
        ("uvicorn main:app --backlog 10", "--backlog 10: no equivalent"),
        ("uvicorn main:app --lifespan off", "--lifespan off: no equivalent"),
        ("uvicorn main:app --brand-new", "--brand-new: no equivalent"),
        ("gunicorn main:app --daemon", "--daemon: poolctl start runs it in the background"),
        ("gunicorn main:app -k asgi -c conf.py", "--config conf.py: its settings were not read"),
        ("gunicorn main:app -b :80 -b :81", "--bind :81: a server has one address"),
        (
            "uvicorn main:app --interface wsgi",
            "uvicorn: --interface wsgi: taken over as a program like any other",
        ),
    ],
)
def test_option_without_equivalent_is_a_remark(imported: Import, line: str, remark: str) -> None:
    assert remark in imported(line).remarks


def test_password_of_a_key_is_not_written(imported: Import) -> None:
    said = imported("uvicorn main:app --ssl-keyfile-password hunter2")
    (table,) = said.servers.values()
    assert table == {"bind": "127.0.0.1:8000", "app": "main:app"}
    assert [each for each in said.remarks if "hunter2" in each] == []


def test_value_that_poolctl_refuses_is_a_remark(imported: Import) -> None:
    said = imported("uvicorn main:app --loop quick")
    assert "http" not in said.servers["main"]
    assert any(remark.startswith('http = { loop = "quick" }: ') for remark in said.remarks)


def test_remark_is_counted_once(imported: Import, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gunicorn", "main:app", "-k", "asgi", "--daemon", "--reload"]
    assert len(imported(" ".join(words)).remarks) == 2
    assert main(["import", "-o", "pool.toml", "--", *words]) == 0
    assert ", 2 remarks;" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("bind", "expose"), [("-b 0.0.0.0:8443", "https://localhost:8443"), ("", "https://localhost:8000")]
)
def test_gunicorn_with_a_certificate_is_reached_by_https(imported: Import, bind: str, expose: str) -> None:
    servers = imported(f"gunicorn {bind} --certfile a.pem --graceful-timeout 20 shop:app").servers
    assert (servers["shop"]["expose"], servers["shop"]["stop_timeout"]) == (expose, "25s")


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("cd app && node s.js --port $PORT", {"bind": "127.0.0.1:5000"}),
        ("cd app && node s.js --listen 0.0.0.0:${PORT}", {"bind": ":5000"}),
        ("cd app && node s.js", {}),
    ],
)
def test_line_for_a_shell_listens_where_it_names_its_port(
    imported: Import, line: str, keys: dict[str, str]
) -> None:
    server = imported(f"w: {line}\n", "Procfile").servers["w"]
    command = re.sub(r"\$\{?PORT\}?", "{port}", line)
    assert server == {**keys, "command": ["sh", "-c", command]}


def test_line_that_no_shell_can_read_is_left_out_with_a_remark(imported: Import) -> None:
    said = imported("w: echo 'open\nx: ./serve\n", "Procfile")
    assert [*said.servers] == ["x"]
    assert "the shell cannot read its command" in said.remarks[0]
