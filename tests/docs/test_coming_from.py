"""What is said to those who come from other tools is configuration that works, with the programs that it names."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest

from poolctl import PoolConfig
from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import HELLO_APP, RealPool

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text()
FILES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [json.loads(each) for each in re.findall(r'`(?:command = )?(\["(?:node|env)".*?\])`', PAGE)]

WSGI = """
def application(environ, start_response):
    start_response("200 OK", [("content-length", "6")])
    return [b"legacy"]
"""

NODE = """
const server = require("node:http").createServer((request, response) => response.end("node"))
server.listen(process.argv[2] || process.env.PORT, "127.0.0.1")
"""


@pytest.mark.parametrize("text", FILES)
def test_each_example_is_valid(tmp_path: Path, text: str) -> None:
    (tmp_path / "pool.toml").write_text(text)
    config = PoolConfig.load(tmp_path / "pool.toml", {})
    assert [str(problem) for problem in config.problems] == []
    assert len(config) == 1
    config.check_external()  # the applications are not there
    assert config.warnings == []


def test_each_key_in_a_table_of_the_pages_is_one_that_a_file_takes(
    tmp_path: Path, installed_haproxy: None
) -> None:
    rows = re.findall(r"^\|.*", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)
    keys = {each for row in rows for each in re.findall(r"`([a-z_.]+ = [^`…]+)`", row) if is_toml(each)}
    assert len(keys) > 40
    assert [each for each in sorted(keys) if not is_taken(tmp_path / "pool.toml", each)] == []


def is_toml(text: str) -> bool:
    """Whether it is more than names of keys, as in `log = { path, keep }`."""
    try:
        return bool(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return False


def is_taken(path: Path, keys: str) -> bool:
    """Whether a server, a route or the gateway can have these keys."""
    gateway = '[gateway]\nbind = ":80"\n'
    for table in (
        '[[server]]\nname = "web"\nbind = ":8000"\napp = "web:app"\n',
        '[[server]]\nname = "web"\nbind = "unix:./web.sock"\napp = "web:app"\n',
        '[[server]]\nname = "web"\nbind = ":8000"\ncommand = ["web"]\n',
        '[[server]]\nname = "work"\ncommand = ["work"]\n',
        f'{gateway}[[route]]\nhost = "a.example.com"\nto = "http://127.0.0.1:8000"\n',
        f'{gateway}[[route]]\nhost = "a.example.com"\n',
        gateway,
    ):
        named = [*tomllib.loads(keys)]
        rest = re.sub(rf"^({'|'.join(named)}) = .*\n", "", table, flags=re.MULTILINE)
        path.write_text(f"{rest}{keys}\n")
        if not PoolConfig.load(path, {}).problems:
            return True
    return False


@pytest.mark.slow
def test_each_file_runs_with_the_program_that_it_names(real_pool: RealPool) -> None:
    pool = real_pool
    pool.env["PATH"] = f"{Path(program('gunicorn')).parent}:{pool.env['PATH']}"
    pool.write("shop/users.py", HELLO_APP)
    pool.write("legacy/wsgi.py", WSGI)
    pool.write("files/index.html", "files")
    pool.write("shop/queue.py", "import time\ntime.sleep(600)\n")
    ports = {number: claim_port() for number in re.findall(r"127\.0\.0\.1:(\d+)", "".join(FILES))}
    text = "\n".join(FILES).replace("/srv/files", "files").replace("/run/shop", str(pool.runtime))
    for number, port in ports.items():
        text = text.replace(f"127.0.0.1:{number}", f"127.0.0.1:{port}")
    text = re.sub(r'"users"(?=\nbind = "unix:)', '"behind-nginx"', text)
    pool.write("pool.toml", text)
    pool.ok("start")
    items = pool.items()
    queue = items.pop("queue")
    assert (queue["bind"], queue["ready"], len(queue["pids"])) == ("process:queue", True, 2)
    found = {name: get(item["bind"]).text for name, item in items.items()}
    assert found.pop("users").startswith("hello from")
    assert found.pop("api").startswith("hello from")
    assert found.pop("behind-nginx").startswith("hello from")
    assert found == {"legacy": "legacy", "files": "files"}


USERS = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        said = f"{scope['scheme']} {scope['path']} {dict(scope['headers'])[b'host'].decode()}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said.encode()})
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run nginx as another user")
def test_nginx_that_runs_as_www_data_reaches_the_server_behind_it(real_pool: RealPool) -> None:
    nginx, port = program("nginx"), claim_port()
    if not any(each.pw_name == "www-data" for each in pwd.getpwall()):
        pytest.skip("there is no user www-data")
    real_pool.open_to_all()
    (example,) = [each for each in FILES if "unix:" in each]
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    run = real_pool.directory / "shop"
    run.mkdir(0o755)
    real_pool.write("shop/users.py", USERS)
    real_pool.write("pool.toml", example.replace("/run/shop", str(run)))
    real_pool.ok("start")
    block = block.replace("/run/shop", str(run)).replace("listen 80;", f"listen 127.0.0.1:{port};")
    paths = "".join(
        f"{each}_temp_path {real_pool.directory}/{each};\n"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    logs = f"pid {real_pool.directory}/nginx.pid;\nerror_log stderr;\n"
    http = f"http {{\naccess_log off;\n{paths}{block}}}\n"
    conf = real_pool.write("nginx.conf", f"user www-data;\ndaemon off;\n{logs}events {{}}\n{http}")
    process = subprocess.Popen([nginx, "-c", str(conf)], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: process.poll() is not None or is_open(port))
        found = get(port, "/users/7", headers={"Host": "shop.example.org"})
    finally:
        process.terminate()
        said = process.communicate()[1]
    assert (found.status, found.text) == (200, "http /7 shop.example.org"), said


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_each_command_of_node_runs(real_pool: RealPool) -> None:
    pool = real_pool
    pool.env["PATH"] = f"{Path(program('node')).parent}:{pool.env['PATH']}"
    pool.write("app.js", NODE)
    pool.write("takes.js", NODE.replace('process.argv[2] || process.env.PORT, "127.0.0.1"', "{ fd: 3 }"))
    assert len(COMMANDS) == 2
    tables = [
        server(f"n{number}", bind=f"127.0.0.1:{claim_port()}", command=command)
        for number, command in enumerate(COMMANDS)
    ]
    tables.append(server("takes", bind=f"127.0.0.1:{claim_port()}", command=["node", "takes.js"], workers=2))
    pool.write("pool.toml", "\n".join(tables))
    pool.ok("start")
    assert {get(item["bind"]).text for item in pool.items().values()} == {"node"}
