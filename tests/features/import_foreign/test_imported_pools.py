"""What was imported can be started, and serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.http_get import get
from tests.ports import claim_port
from tests.programs import program
from tests.real_pool import HELLO_APP, RealPool

pytestmark = pytest.mark.integration

WSGI = """
def application(environ, start_response):
    start_response("200 OK", [("content-length", "4")])
    return [b"wsgi"]
"""


@pytest.fixture
def shop(real_pool: RealPool) -> RealPool:
    """A directory with applications, and gunicorn on PATH."""
    pool = real_pool
    pool.env["PATH"] = f"{Path(program('gunicorn')).parent}:{pool.env['PATH']}"
    pool.write("hello.py", HELLO_APP)
    pool.write("legacy.py", WSGI)
    pool.write("index.html", "static")
    return pool


def served(pool: RealPool, *args: str) -> dict[str, str]:
    """What each server with an address answers, once the imported pool has started."""
    pool.ok("import", *args)
    pool.ok("start")
    items = pool.items()
    assert all(item["ready"] for item in items.values()), items
    return {name: get(item["bind"]).text for name, item in items.items() if item["expose"]}


@pytest.mark.capability
def test_procfile_is_started(shop: RealPool) -> None:
    shop.write(
        "Procfile",
        f"""
        web: uvicorn hello:app --port {(web := claim_port())}
        static: python3 -m http.server --bind 127.0.0.1 $PORT
        legacy: gunicorn -b 127.0.0.1:{claim_port()} -w 2 legacy
        nice: nice -n 1 gunicorn -b 127.0.0.1:{claim_port()} legacy
        shell: cd . && exec uvicorn hello:app --port {(shell := claim_port())}
        worker: while sleep 1; do :; done
        release: touch released
        """,
    )
    shop.ok("import", "Procfile", "-o", "pool.toml")
    port = claim_port()
    text = (shop.directory / "pool.toml").read_text().replace(":5100", f":{port}")
    (shop.directory / "pool.toml").write_text(text)
    shop.ok("start")
    items = shop.items()
    assert items["worker"]["ready"]
    assert (shop.directory / "released").exists()
    found = {name: item for name, item in items.items() if item["expose"]}
    assert {name: get(item["bind"]).text for name, item in found.items()} == {
        "web": f"hello from {web}",
        "static": "static",
        "legacy": "wsgi",
        "nice": "wsgi",
        "shell": f"hello from {shell}",
    }


def test_supervisord_conf_is_started(shop: RealPool) -> None:
    port, first = claim_port(), claim_port()
    shop.write(
        "supervisord.conf",
        f"""
        [program:legacy]
        command=gunicorn -b 127.0.0.1:{port} legacy
        directory=%(here)s
        environment=LEVEL="info"
        stopwaitsecs=20
        priority=20

        [program:hello]
        command=gunicorn -k uvicorn.workers.UvicornWorker -w 2 -b 127.0.0.1:{first} hello:app

        [program:queue]
        command=sleep 600
        numprocs=2
        priority=10

        [program:migrate]
        command=touch migrated
        directory=%(here)s
        autorestart=false
        startsecs=0
        priority=1

        [program:shard]
        command=sh -c "touch shard.$SHARD; exec sleep 600"
        directory=%(here)s
        numprocs=2
        process_name=shard_%(process_num)02d
        environment=SHARD="%(process_num)d"
        """,
    )
    assert served(shop, "supervisord.conf", "-o", "pool.toml") == {
        "legacy": "wsgi",
        "hello": f"hello from {first}",
    }
    assert len(shop.items()["queue"]["pids"]) == 2
    assert {path.name for path in shop.directory.iterdir()} >= {"migrated", "shard.0", "shard.1"}


def test_compose_file_is_started(shop: RealPool) -> None:
    api, front = claim_port(), claim_port()
    shop.write(
        "compose.yaml",
        f"""
        services:
          api:
            build: .
            command: uvicorn hello:app --host 0.0.0.0 --port 80
            ports: ["127.0.0.1:{api}:80"]
            healthcheck: {{test: ["CMD", "curl", "-f", "http://localhost:80/"], interval: 1s}}
          front:
            build: .
            command: python3 -m http.server --bind 127.0.0.1 3000
            ports: ["127.0.0.1:{front}:3000"]
            depends_on: {{api: {{condition: service_healthy}}}}
        """,
    )
    found = served(shop, "compose.yaml", "-o", "pool.toml")
    assert found == {"api": f"hello from {api}", "front": "static"}


@pytest.mark.heavy
def test_unit_and_command_line_are_started(shop: RealPool) -> None:
    port = claim_port()
    shop.write(
        "legacy.service",
        f"""
        [Service]
        Type=notify
        WorkingDirectory={shop.directory}
        ExecStart={program("gunicorn")} -b 127.0.0.1:{port} legacy
        """,
    )
    assert served(shop, "legacy.service", "-o", "pool.toml") == {"legacy": "wsgi"}
    shop.ok("stop")
    unit = f"[Service]\nWorkingDirectory={shop.directory}\nExecStart=uvicorn hello:app --port {port}\n"
    shop.write("units/hello.service", unit)
    found = served(shop, "units/hello.service", "-o", "pool.toml", "--force")
    assert found == {"hello": f"hello from {port}"}
    shop.ok("stop")
    line = ["gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "legacy:application"]
    assert served(shop, "-o", "pool.toml", "--force", "--", *line) == {"legacy": "wsgi"}
    shop.ok("stop")
    line = ["uvicorn", "hello:app", "--port", str(port), "--workers", "2"]
    assert served(shop, "-o", "pool.toml", "--force", "--", *line) == {"hello": f"hello from {port}"}


def test_ecosystem_of_pm2_is_started(shop: RealPool) -> None:
    pool, port = shop, claim_port()
    pool.env["PATH"] = f"{Path(program('node')).parent}:{pool.env['PATH']}"
    pool.write(
        "server.js",
        "require('node:http').createServer((ask, answer) => answer.end('node')).listen(process.env.PORT)\n",
    )
    pool.write(
        "ecosystem.json",
        f'{{"apps": [{{"name": "node", "script": "server.js", "instances": 2, "env": {{"PORT": {port}}}}}]}}',
    )
    pool.ok("import", "ecosystem.json", "-o", "pool.toml")
    pool.ok("start")
    assert get(f"127.0.0.1:{port}").text == "node"
