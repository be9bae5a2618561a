"""Servers that run as programs get the address on which they listen, also behind launchers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.main import main

from .conftest import Import, Imported, assert_valid


@pytest.fixture
def of_line(tmp_path: Path, imported: Import, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `poolctl import -- LINE` prints; the text is valid."""

    def run(line: str) -> Imported:
        said = Imported(main(["import", "--", *shlex.split(line)]), *capsys.readouterr())
        assert_valid(tmp_path, said.text)
        return said

    return run


@pytest.mark.parametrize(
    ("line", "bind", "command"),
    [
        ("hypercorn app:app", "127.0.0.1:8000", "hypercorn app:app --bind fd://{fd}"),
        ("hypercorn -b 0.0.0.0:80 -w 2 app:app", "0.0.0.0:80", "hypercorn -w 2 app:app --bind fd://{fd}"),
        ("hypercorn app:app --bind unix:/run/x", "unix:/run/x", "hypercorn app:app --bind fd://{fd}"),
        ("python3 -X dev -m hypercorn app:app", "127.0.0.1:8000", "python3 -X dev -m hypercorn app:app --bind fd://{fd}"),
        ("daphne -b 0.0.0.0 -p 81 a.asgi:application", "0.0.0.0:81", "daphne a.asgi:application --fd {fd}"),
        ("daphne -b ::1 -p 81 a:app", "[::1]:81", "daphne -b {host} -p {port} a:app"),
        ("granian a:app --host ::1 --port=82", "[::1]:82", "granian a:app --host {host} --port={port}"),
        ("fastapi run main.py", ":8000", "fastapi run main.py --port {port} --host {host}"),
        ("fastapi dev --port 83", "127.0.0.1:83", "fastapi dev --port {port} --host {host}"),
        ("flask --app a run -h0.0.0.0 -p 84", "0.0.0.0:84", "flask --app a run -h{host} -p {port}"),
        ("python3 manage.py runserver", "127.0.0.1:8000", "python3 manage.py runserver {host}:{port}"),
        ("python3 manage.py runserver 0:85", ":85", "python3 manage.py runserver {host}:{port}"),
        ("./manage.py runserver --noreload 86", "127.0.0.1:86", "./manage.py runserver --noreload {host}:{port}"),
        ("waitress-serve --listen=*:87 a:app", ":87", "waitress-serve --listen={host}:{port} a:app"),
        ("waitress-serve a:app", ":8080", "waitress-serve a:app --port {port} --host {host}"),
        ("streamlit run a.py --server.port=88", ":88",
         "streamlit run a.py --server.port={port} --server.address {host}"),
        ("next start -p 89", ":89", "next start -p {port} --hostname {host}"),
        ("node node_modules/next/dist/bin/next start", ":3000",
         "node node_modules/next/dist/bin/next start --port {port} --hostname {host}"),
        ("python3 -m http.server 90", ":90", "python3 -m http.server {port} --bind {host}"),
        ("php -S localhost:91 -t www", "localhost:91", "php -S {host}:{port} -t www"),
        ("php artisan serve", "127.0.0.1:8000", "php artisan serve --port {port} --host {host}"),
        ("puma -b tcp://0.0.0.0:92", "0.0.0.0:92", "puma -b tcp://{host}:{port}"),
        ("celery -A a flower --port=93", ":93", "celery -A a flower --port={port} --address {host}"),
        ("vite build", "", "vite build"),
        ("next build", "", "next build"),
        ("python3 manage.py migrate", "", "python3 manage.py migrate"),
        ("python3 -c print(1)", "", "python3 -c print(1)"),
    ],
)  # fmt: skip
def test_program_that_listens_gets_its_address(of_line: Any, line: str, bind: str, command: str) -> None:
    (table,) = of_line(line).servers.values()
    assert (table.get("bind", ""), shlex.join(table["command"])) == (bind, shlex.join(shlex.split(command)))
    assert "socket" not in table


@pytest.mark.parametrize(
    ("line", "bind", "command"),
    [
        ("nice -n 5 uvicorn a:app --port 80", "127.0.0.1:80",
         "nice -n 5 uvicorn a:app --port {port} --host {host}"),
        ("nice gunicorn a:app -b :81", ":81", "nice gunicorn a:app -b {host}:{port}"),
        ("uv run gunicorn a:app", "127.0.0.1:8000", "uv run gunicorn a:app --bind {host}:{port}"),
        ("poetry run hypercorn a:app -b :82", ":82", "poetry run hypercorn a:app -b {host}:{port}"),
        ("uv run --with x uvicorn a:app", "127.0.0.1:8000",
         "uv run --with x uvicorn a:app --port {port} --host {host}"),
        ("conda run -n x --live-stream flask run", "127.0.0.1:5000",
         "conda run -n x --live-stream flask run --port {port} --host {host}"),
        ("timeout -k 5 1h flask run -p 83", "127.0.0.1:83", "timeout -k 5 1h flask run -p {port} --host {host}"),
        ("wait-for-it.sh db:5432 -t 9 -- flask run", "127.0.0.1:5000",
         "wait-for-it.sh db:5432 -t 9 -- flask run --port {port} --host {host}"),
        ("env -u A B=1 flask run", "127.0.0.1:5000", "env -u A B=1 flask run --port {port} --host {host}"),
        ("sudo -u web A=1 gunicorn a:app", "127.0.0.1:8000",
         "sudo -u web A=1 gunicorn a:app --bind {host}:{port}"),
        ("ddtrace-run uvicorn a:app", "127.0.0.1:8000", "ddtrace-run uvicorn a:app --port {port} --host {host}"),
        ("npx next start", ":3000", "npx next start --port {port} --hostname {host}"),
        ("dumb-init -- flask run", "127.0.0.1:5000", "flask run --port {port} --host {host}"),
        ("tini -g -- flask run", "127.0.0.1:5000", "tini -g -- flask run --port {port} --host {host}"),
        ("nohup setsid flask run", "127.0.0.1:5000", "flask run --port {port} --host {host}"),
        ("nice", "", "nice"),
        ("uv run main.py", "", "uv run main.py"),
    ],
)  # fmt: skip
def test_launcher_stays_before_its_program(of_line: Any, line: str, bind: str, command: str) -> None:
    (table,) = of_line(line).servers.values()
    assert (table.get("bind", ""), shlex.join(table["command"])) == (bind, shlex.join(shlex.split(command)))


@pytest.mark.parametrize(
    ("line", "keys", "remarks"),
    [
        ("/usr/bin/env A=1 uvicorn a:app --port 80", {"bind": "127.0.0.1:80", "env": {"A": "1"}}, []),
        ("/usr/bin/env uvicorn a:app --port 80", {"bind": "127.0.0.1:80"}, []),
        ("/v/bin/python /v/bin/uvicorn a:app", {"bind": "127.0.0.1:8000", "python": "/v/bin/python"}, []),
        ("python3 -u -m uvicorn a:app", {"bind": "127.0.0.1:8000"}, []),
        ("python3 -O -m uvicorn a:app", {"bind": "127.0.0.1:8000"}, ["python3 -O: no equivalent"]),
        ("uv run --frozen uvicorn a:app", {"bind": "127.0.0.1:8000"}, []),
        ("uv run -m uvicorn a:app", {"bind": "127.0.0.1:8000"}, []),
        ("poetry run uvicorn a:app", {"bind": "127.0.0.1:8000"},
         ["poetry run: name its environment as `python`, unless it is .venv"]),
        ("tini -- uvicorn a:app", {"bind": "127.0.0.1:8000"}, []),
        ("gosu root uvicorn a:app", {"bind": "127.0.0.1:8000", "user": "root"}, []),
        ("bash -c 'exec uvicorn a:app --port 80'", {"bind": "127.0.0.1:80"}, []),
        ("bash -euo pipefail -c 'uvicorn a:app'", {"bind": "127.0.0.1:8000"}, []),
        ("sh -c 'cd /srv && export A=1; exec uvicorn a:app'",
         {"bind": "127.0.0.1:8000", "env": {"A": "1"}, "cwd": "/srv", "app_dir": "/srv"}, []),
        ("sh -c 'uvicorn a:app --port ${PORT:-80}'", {"bind": "127.0.0.1:80"}, []),
        ("sh -c '. v/bin/activate && cd src && uvicorn a:app'",
         {"bind": "127.0.0.1:8000", "cwd": "src", "app_dir": "src", "python": "v",
          "env": {"PATH": "../v/bin:${PATH}"}}, []),
    ],
)  # fmt: skip
def test_app_behind_a_launcher_is_an_app(
    of_line: Any, line: str, keys: dict[str, object], remarks: list[str]
) -> None:
    said = of_line(line)
    assert [*said.servers.values()] == [{"app": "a:app"} | keys]
    assert said.remarks == remarks


@pytest.mark.parametrize(
    ("script", "keys"),
    [
        ("./migrate && gunicorn a:app -b 0.0.0.0:80 -w 3",
         {"bind": "0.0.0.0:80", "command": ["sh", "-c", "./migrate && gunicorn a:app -b 0.0.0.0:{port} -w 3"]}),
        ("./migrate && gunicorn a:app", {"bind": "127.0.0.1:8000", "socket": "program"}),
        ("./migrate 80; flask run -p 80", {"bind": "127.0.0.1:80", "socket": "program"}),
        ("npm run build && npx next start", {"bind": ":3000", "socket": "program"}),
        ("while sleep 1; do :; done", {}),
        ("cd src", {}),
        ("echo 'open", {}),
    ],
)  # fmt: skip
def test_script_that_ends_with_a_server_gets_its_address(
    of_line: Any, script: str, keys: dict[str, object]
) -> None:
    (table,) = of_line(f"sh -c {shlex.quote(script)}").servers.values()
    assert table == {"command": ["sh", "-c", script]} | keys


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("uwsgi app.ini", 'uwsgi: write where it listens as bind, with socket = "program"'),
        ("puma -C puma.rb", 'puma.rb: write where it listens as bind, with socket = "program"'),
        ("daphne -u /run/g a:app",
         "/run/g: the program opens this socket itself; write bind once it takes one ({fd})"),
        ("granian --uds /run/g a:app",
         "/run/g: the program opens this socket itself; write bind once it takes one ({fd})"),
        ("hypercorn a:app -b :80 -b :81", ":81: a server has one address"),
    ],
)  # fmt: skip
def test_address_that_cannot_be_taken_over_is_a_remark(of_line: Any, line: str, remark: str) -> None:
    assert remark in of_line(line).remarks


@pytest.mark.parametrize(
    ("line", "signal"), [("uwsgi --http :80", "SIGINT"), ("uwsgi --http :80 --die-on-term", None)]
)
def test_uwsgi_is_stopped_by_a_signal_that_ends_it(of_line: Any, line: str, signal: str | None) -> None:
    (table,) = of_line(line).servers.values()
    assert table.get("stop_signal") == signal


def test_https_of_a_program_is_its_address_for_clients(of_line: Any) -> None:
    (table,) = of_line("hypercorn a:app -b :8443 --certfile c --keyfile k").servers.values()
    assert table["expose"] == "https://localhost:8443"


def test_words_of_the_program_in_braces_are_passed_on(of_line: Any) -> None:
    (table,) = of_line("show {name} {{port}} '${host}' {other}").servers.values()
    assert table["command"] == ["show", "{{name}}", "{{{{port}}}}", "$${{host}}", "{other}"]


def test_variable_with_the_port_is_its_address(imported: Import) -> None:
    text = '{"apps": [{"script": "flask", "args": "run", "interpreter": "none", "env": {"FLASK_RUN_PORT": "80"}}]}'
    assert imported(text, "ecosystem.json").servers["flask"]["bind"] == "127.0.0.1:80"


def test_stop_signal_of_the_source_wins(imported: Import) -> None:
    said = imported("[program:a]\ncommand=uwsgi --http :80\nstopsignal=QUIT\n", "supervisord.conf")
    assert said.servers["a"]["stop_signal"] == "SIGQUIT"


def test_environment_that_a_script_activates_is_found_from_the_working_directory(imported: Import) -> None:
    line = "/bin/bash -c 'source venv/bin/activate && exec gunicorn a:app --bind :$PORT'"
    text = f"[Service]\nWorkingDirectory=/srv\nEnvironment=PORT=80\nExecStart={line}\n"
    table = imported(text, "w.service").servers["w"]
    assert (table["bind"], table["command"]) == (":80", ["gunicorn", "a:app"])
    assert table["env"] == {"PORT": "80", "PATH": "/srv/venv/bin:${PATH}"}


@pytest.mark.parametrize(
    ("line", "bind"),
    [
        ("./migrate && gunicorn a:app", ":5000"), ("uv run gunicorn a:app", ":5000"), ("npx next start", ":5000"),
        ("./build && npx next start", ":5000"), ("fastapi run", ":8000"), ("PORT=80 npx next start", ":80"),
    ],
)  # fmt: skip
def test_program_that_reads_port_listens_on_the_one_of_the_procfile(
    imported: Import, line: str, bind: str
) -> None:
    assert imported(f"w: {line}\n", "Procfile").servers["w"]["bind"] == bind
