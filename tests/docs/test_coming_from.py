"""What is said to those who come from other tools is configuration that works, with the programs that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from poolctl import PoolConfig
from tests.configuration import server
from tests.http_get import get
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import HELLO_APP, RealPool

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
    assert found.pop("behind-nginx").startswith("hello from")
    assert found == {"legacy": "legacy", "files": "files"}


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


def test_each_command_that_is_named_is_one() -> None:
    from poolctl.cli.command_line import names

    named = set(re.findall(r"`poolctl ([a-z]+)", PAGE))
    assert named
    assert named <= {*names()}
