"""Command lines of uvicorn and gunicorn become servers; what has no equivalent is named."""

from __future__ import annotations

import re
from typing import Any

import pytest

from poolctl.cli.main import main
from poolctl.features.import_foreign._command_lines import apply_command_words
from poolctl.features.import_foreign._foreign_pool import ForeignServer

from .conftest import Import


@pytest.mark.parametrize(
    ("line", "name", "keys"),
    [
        ("uvicorn shop.users:app", "users", {"bind": "127.0.0.1:8000", "app": "shop.users:app"}),
        (
            "uvicorn main:make --factory --host 0.0.0.0 --port 80 --workers 4 --root-path /api",
            "main",
            {"bind": "0.0.0.0:80", "app": "main:make", "factory": True, "workers": 4, "http": {"root_path": "/api"}},
        ),
        (
            "python3 -m uvicorn main:app --uds /run/app.sock --app-dir src --env-file prod.env",
            "main",
            {"bind": "unix:/run/app.sock", "app": "main:app", "app_dir": "src", "env_file": ["prod.env"]},
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
            "uvicorn main:app --interface wsgi",
            "main",
            {"bind": "127.0.0.1:8000", "app": "main:app", "interface": "wsgi"},
        ),
        (
            "uvicorn main:app --interface asgi3",
            "main",
            {"bind": "127.0.0.1:8000", "app": "main:app", "interface": "asgi"},
        ),
        ("uvicorn main:app --interface auto", "main", {"bind": "127.0.0.1:8000", "app": "main:app"}),
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
                "bind": "0.0.0.0:8000", "app": "main:app", "workers": 4, "stop_timeout": "38s",
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
        ("uvicorn main:app --http2", "--http2: the gateway speaks HTTP/2"),
        ("uvicorn main:app --http zttp", "--http zttp: an app is served with httptools or h11"),
        ("uvicorn main:app --brand-new", "--brand-new: no equivalent"),
        ("gunicorn main:app --daemon", "--daemon: poolctl start runs it in the background"),
        ("gunicorn main:app -k asgi -c conf.py", "--config conf.py: its settings were not read"),
        ("gunicorn main:app -b :80 -b :81", "--bind :81: a server has one address"),
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
    assert any(remark.startswith('http.loop = "quick": ') for remark in said.remarks)


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
        "web": {"bind": "0.0.0.0:5000", "app": "shop:app", "depends_on": after},
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


def test_web_process_with_a_socket_of_its_own_is_given_no_port(imported: Import) -> None:
    said = imported("web: gunicorn -w $N -b unix:/run/a.sock a:b\n", "Procfile")
    assert said.servers["web"] == {"command": ["sh", "-c", "gunicorn -w $N -b unix:/run/a.sock a:b"]}
    own = "the program opens this socket itself; write bind once it takes one ({fd})"
    assert said.remarks == [f"Procfile:1: /run/a.sock: {own}"]


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
        ("./build && node s.js --port $PORT", {"bind": "127.0.0.1:5000"}),
        ("./build && node s.js --listen 0.0.0.0:${PORT}", {"bind": "0.0.0.0:5000"}),
        ("./build && node s.js", {}),
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


@pytest.mark.parametrize(
    ("line", "name", "keys", "remarks"),
    [
        ("exec -a", "exec", {"command": ["exec", "-a"]}, []),
        ("uvicorn a:b --reloa", "a", {"bind": "127.0.0.1:8000", "app": "a:b"}, ["--reloa: no equivalent"]),
        ("uvicorn a:b -h", "a", {"bind": "127.0.0.1:8000", "app": "a:b"}, ["-h: no equivalent"]),
        ("env", "env", {"command": ["env"]}, []),
        ("uv run", "uv", {"command": ["uv", "run"]}, []),
        ("uv run -x y", "y", {"command": ["uv", "run", "-x", "y"]}, []),
        ("uv run x", "x", {"command": ["uv", "run", "x"]}, []),
        ("python -m", "python", {"command": ["python", "-m"]}, []),
        ("python3 x.py", "python3", {"command": ["python3", "x.py"]}, []),
        ("F=1 /opt/python3.11 -m uvicorn a.b:c", "b",
         {"bind": "127.0.0.1:8000", "app": "a.b:c", "env": {"F": "1"}, "python": "/opt/python3.11"}, []),
        ("python -m gunicorn a:b -k asgi", "a", {"bind": "127.0.0.1:8000", "app": "a:b"}, []),
        ("/opt/x/gunicorn a:b -k asgi -u root", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b", "user": "root", "python": "/opt/x/python3"}, []),
        ("uvicorn a:b --no-proxy-headers --forwarded-allow-ips ::1,,10.0.0.1", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b", "http": {"trusted_proxies": ["::1", "10.0.0.1"]}}, []),
        ("uvicorn a:b --forwarded-allow-ips ::1 --no-access-log --no-date-header --use-colors", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b",
          "http": {"trusted_proxies": ["::1"], "proxy_headers": True, "access_log": False}},
         ["--date-header no: no equivalent"]),
        ("uvicorn a:b --lifespan auto --log-level DEBUG --ws none --ssl-certfile c --ssl-cert-reqs 0", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b", "http": {"log_level": "debug", "websocket": "none"},
          "tls": {"cert": "c", "client_auth": "none"}}, []),
        ("uvicorn a:b --timeout-graceful-shutdown 1 --h11-max-incomplete-event-size 4096 --ws-max-size=5", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b", "stop_timeout": "2s", "http": {"max_head_size": 4096}},
         ["--ws-max-size 5: no equivalent"]),
        ("gunicorn a:b -k gevent -w 2 --certfile c --config x.py", "a",
         {"bind": "127.0.0.1:8000", "expose": "https://localhost:8000",
          "command": ["gunicorn", "a:b", "-k", "gevent", "-w", "2", "--certfile", "c", "--config", "x.py"]},
         ["x.py: where it has a bind, write that one here"]),
        ("gunicorn a:b -b h:1 --config x.py", "a",
         {"bind": "h:1", "command": ["gunicorn", "a:b", "--config", "x.py"]}, []),
        ("gunicorn a:b -k asgi -t 0 --forwarded-allow-ips * --access-logfile -", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b", "recovery": {"heartbeat": 0},
          "http": {"trusted_proxies": ["*"], "access_log": True, "proxy_headers": True}}, []),
        ("gunicorn a:b -b unix://run/x -b fd://3", "a", {"bind": "unix:run/x", "command": ["gunicorn", "a:b"]},
         ["--bind fd://3: a server has one address"]),
        ("gunicorn a:b -b tcp://h -D -p x.pid", "a", {"bind": "h:8000", "command": ["gunicorn", "a:b"]},
         ["--daemon: poolctl start runs it in the background", "--pid: poolctl list -o name,pids shows the pids"]),
        ("gunicorn a:b -bx:1 -D --bind=y --pid=z -px --name n", "a",
         {"bind": "x:1", "command": ["gunicorn", "a:b", "--name", "n"]},
         ["--bind y: a server has one address", "--daemon: poolctl start runs it in the background",
          "--pid: poolctl list -o name,pids shows the pids"]),
        ("gunicorn a:b --daemon --pid x --reload --name y", "a",
         {"bind": "127.0.0.1:8000", "command": ["gunicorn", "a:b", "--name", "y"]},
         ["--daemon: poolctl start runs it in the background", "--pid: poolctl list -o name,pids shows the pids",
          "--reload: poolctl run --watch reloads the code"]),
        ("gunicorn a:b -b h:80 --config x.py --reload --pid=x --error-logfile - -k asgi", "a",
         {"bind": "h:80", "app": "a:b"},
         ["--config x.py: its settings were not read", "--pid x: poolctl list -o name,pids shows the pids",
          "--reload: poolctl run --watch reloads the code"]),
        ("gunicorn a:b -b [::1] --error-logfile x -k asgi --asgi-loop auto --asgi-lifespan off -R", "a",
         {"bind": "[::1]:8000", "app": "a:b"},
         ["--asgi-lifespan off: no equivalent", "--error-logfile x: the log of a server has it too"]),
        ("gunicorn -k asgi a() -e A=1 -e B=2=3 -g x", "gunicorn",
         {"bind": "127.0.0.1:8000", "app": "a:application", "factory": True, "env": {"A": "1", "B": "2=3"}}, []),
        ("gunicorn a:b --pythonpath x,y -k asgi --max-requests 5 --worker-connections 6 --umask 022", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b", "http": {"max_requests": 5, "max_connections": 6}, "umask": "022",
          "app_dir": "x"}, ["--pythonpath y: app_dir is one directory"]),
        ("gunicorn a:b -k asgi --log-file - --access-logfile /x --name a --capture-output", "a",
         {"bind": "127.0.0.1:8000", "app": "a:b", "http": {"access_log": True}},
         ["--access-logfile /x: the log of a server has its requests too"]),
        ("uvicorn a:b --workers x other", "a", {"bind": "127.0.0.1:8000", "app": "a:b"},
         ["--workers x: no equivalent", "other: no equivalent"]),
        ("gunicorn a:b -b unix:/run/a -k asgi -m 007 -u web", "a",
         {"bind": "unix:/run/a", "app": "a:b", "umask": "007", "socket_mode": "0660", "user": "web"}, []),
        ("gunicorn a:b -b unix:/run/a -m 077 -u x -g y", "a",
         {"bind": "unix:/run/a", "command": ["gunicorn", "a:b", "-m", "077", "-u", "x", "-g", "y"],
          "socket_mode": "0600", "socket_owner": "x:y"}, []),
        ("gunicorn a:b -b unix:/run/a -m 7", "a",
         {"bind": "unix:/run/a", "command": ["gunicorn", "a:b", "-m", "7"], "socket_mode": "0660"}, []),
        ("gunicorn a:b -b *:1 -k asgi --keep-alive 3", "a",
         {"bind": ":1", "app": "a:b", "http": {"keep_alive": "3s"}}, []),
    ],
)  # fmt: skip
def test_each_word_of_a_line_is_taken_over_or_remarked(
    imported: Import, line: str, name: str, keys: dict[str, Any], remarks: list[str]
) -> None:
    said = imported(line)
    assert said.servers == {name: keys}
    assert said.remarks == remarks


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("uvicorn", "no module:attribute among its arguments"),
        ("uvicorn a", "no module:attribute among its arguments"),
        ("uvicorn a:b --port", "argument --port: expected one argument"),
        ("uvicorn a:b(x)", "a:b(x): an app that is called with arguments"),
        ("uvicorn a:b --interface asgi2", "--interface asgi2"),
        ("gunicorn a:b --graceful-timeout x", "invalid literal for int() with base 10: 'x'"),
        ("gunicorn -k asgi", "no module:attribute among its arguments"),
    ],
)
def test_line_that_its_program_would_refuse_is_a_command_like_any_other(
    imported: Import, line: str, problem: str
) -> None:
    said = imported(line)
    assert [*said.servers.values()] == [{"command": line.split()}]
    assert said.remarks == [f"{line.split()[0]}: {problem}: taken over as a program like any other"]


A_SECOND_TIME = "gunicorn takes the socket from LISTEN_FDS, and 'fd://3' would pass it a second time"


@pytest.mark.parametrize(
    ("line", "code", "message", "hint"),
    [
        ("env A=1", 5, "there is no command", "poolctl import -- gunicorn app:app --bind :8000"),
        ("gunicorn a:b -b fd://3", 1, "no server could be taken over",
         f"a: {A_SECOND_TIME}; leave out its --bind"),
    ],
)  # fmt: skip
def test_line_that_cannot_be_taken_over_is_refused(
    imported: Import, line: str, code: int, message: str, hint: str
) -> None:
    said = imported(line, valid=False)
    assert (said.code, said.err) == (code, f"error: {message}\n  hint: {hint}\n")


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("./serve --host 0.0.0.0 --port $PORT",
         {"bind": "0.0.0.0:5000", "command": ["./serve", "--host", "0.0.0.0", "--port", "{port}"]}),
        ("./serve -b 0.0.0.0:${PORT-1}", {"bind": "0.0.0.0:5000", "command": ["./serve", "-b", "0.0.0.0:{port}"]}),
        ("./serve -b ${PORT:-1}", {"bind": "127.0.0.1:5000", "command": ["./serve", "-b", "{port}"]}),
        ("gunicorn a:app", {"bind": ":5000", "command": ["gunicorn", "a:app"]}),
        ("gunicorn -b 127.0.0.1:$PORT a:app", {"bind": "127.0.0.1:5000", "command": ["gunicorn", "a:app"]}),
        ("uvicorn b:app", {"bind": "127.0.0.1:8000", "app": "b:app"}),
        ("uvicorn b:app --port $PORT", {"bind": "127.0.0.1:5000", "app": "b:app"}),
        ("exec env A=1 ./serve 'a;b'", {"command": ["./serve", "a;b"], "env": {"A": "1"}}),
        ("exec ./serve B=$$", {"command": ["sh", "-c", "exec ./serve B=$$"]}),
        ('A=1 ./serve "c|d" ${x}', {"command": ["sh", "-c", 'A=1 ./serve "c|d" $${x}']}),
        (r"./serve \$x \; a\ b", {"command": ["./serve", "$x", ";", "a b"]}),
        ("cd x", {"command": ["sh", "-c", "cd x"]}),
        ("cd x && ./serve -b $PORT", {"bind": "127.0.0.1:5000", "command": ["./serve", "-b", "{port}"], "cwd": "x"}),
        ("cd x && uvicorn b:app", {"bind": "127.0.0.1:8000", "app": "b:app", "cwd": "x", "app_dir": "x"}),
        ("cdx y", {"command": ["cdx", "y"]}),
        (". x", {"command": ["sh", "-c", ". x"]}),
        ("source x", {"command": ["sh", "-c", "source x"]}),
        ("./serve $PORTS", {"command": ["sh", "-c", "./serve $PORTS"]}),
        ("cat < x", {"command": ["sh", "-c", "cat < x"]}),
        ("ls ~", {"command": ["sh", "-c", "ls ~"]}),
        ('./a "$(x)"', {"command": ["sh", "-c", './a "$(x)"']}),
        ("./a '$(x)' `y`", {"command": ["sh", "-c", "./a '$(x)' `y`"]}),
        ("./a '$(x)' \"b*c\"", {"command": ["./a", "$(x)", "b*c"]}),
    ],
)  # fmt: skip
def test_line_of_a_procfile_runs_in_a_shell_if_it_needs_one(
    imported: Import, line: str, keys: dict[str, Any]
) -> None:
    said = imported(f"w: {line}\n", "Procfile")
    assert said.servers == {"w": keys}
    assert said.remarks == []


def test_file_without_a_process_is_no_procfile(imported: Import) -> None:
    said = imported("# a comment\n", "Procfile", valid=False)
    error = "error: Procfile:1: no line of it is NAME: COMMAND\n  hint: is this a Procfile?\n"
    assert (said.code, said.err) == (5, error)


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("uvicorn a:b", {"app_dir": "srv"}),
        ("venv/bin/uvicorn a:b --app-dir src --env-file e", {"python": "srv/venv/bin/python3", "app_dir": "srv/src",
                                                             "env_file": ["srv/e"]}),
        ("uvicorn a:b --app-dir /src --ssl-certfile c --ssl-keyfile ${K}",
         {"app_dir": "/src", "tls": {"cert": "srv/c", "key": "${K}"}}),
        ("gunicorn -k asgi --chdir x a:b", {"cwd": "srv/x", "app_dir": "srv/x"}),
        ("uvicorn a:b --uds a.sock", {"app_dir": "srv", "bind": "unix:srv/a.sock"}),
        ("gunicorn -b unix:a.sock a:b", {"command": ["gunicorn", "a:b"], "bind": "unix:srv/a.sock"}),
        ("gunicorn -k asgi --chdir /x --pythonpath y a:b", {"cwd": "/x", "app_dir": "/x/y"}),
    ],
)  # fmt: skip
def test_app_and_files_of_a_line_are_found_in_its_working_directory(line: str, keys: dict[str, Any]) -> None:
    server = ForeignServer("web", 1)
    server.set("cwd", "srv")
    apply_command_words(server, line.split())
    assert server.keys == {"app": "a:b", "bind": "127.0.0.1:8000", "cwd": "srv", **keys} or (
        "command" in keys and server.keys == {"cwd": "srv", **keys}
    )
