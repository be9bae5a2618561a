"""New code that starts but does not answer as the running code does, where no readiness probe finds that out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = pytest.mark.integration

APP = """
import asyncio, os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    who = dict(scope["headers"])
    if who.get(b"user-agent") == b"poolctl":
        with open("asked", "a") as file:
            file.write(f"{{scope['method']}} {{scope['path']}} {{who[b'host'].decode()}} {{os.getpid()}}\\n")
    {answer}

async def respond(send, status, body=b"", more=False):
    await send({{"type": "http.response.start", "status": status, "headers": []}})
    await send({{"type": "http.response.body", "body": body, "more_body": more}})
"""
Write = Callable[..., int]

FINE = 'await respond(send, 200, b"old")'
RAISES = "raise RuntimeError('no template')"
HANGS = "await asyncio.sleep(60)"
DIES = "os._exit(3)"
UPKEEP = "await respond(send, 503)"
ENDLESS = 'await respond(send, 200, b"", True); await asyncio.sleep(60)'
BY_PROCESS = 'await respond(send, 200 if os.path.exists(f"works-{os.getpid()}") else 500)'
BY_PATH = 'await respond(send, 500 if scope["path"] == "/up" else 200, b"new")'


@pytest.fixture
def write(real_pool: RealPool) -> Write:
    port = claim_port()

    def write(answer: str, keys: str = "") -> int:
        real_pool.write("web.py", APP.format(answer=answer))
        table = f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "web:app"\n'
        real_pool.write("pool.toml", f'{table}expose = "https://shop.example"\n{keys}\n')
        return port

    return write


def pids(pool: RealPool) -> list[int]:
    found: Any = pool.items()["web"]["pids"]
    return list(found)


def asked(pool: RealPool) -> list[str]:
    path: Path = pool.directory / "asked"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.rpartition(" ")[0] for line in lines]


@pytest.mark.parametrize(
    ("new", "said", "keys"),
    [
        (RAISES, "500", ""),
        (RAISES, "500", "workers = 3"),
        (HANGS, "nothing within 10s", ""),
        (DIES, "it closed the connection", "workers = 3"),
    ],
    ids=["raises", "raises in each worker", "hangs", "dies"],
)
def test_new_code_that_fails_where_the_running_code_answers_is_kept_out(
    real_pool: RealPool, write: Write, new: str, said: str, keys: str
) -> None:
    port = write(FINE, keys)
    real_pool.ok("start")
    before = pids(real_pool)
    write(new, keys)
    for verb in ("restart", "reload"):
        if verb == "reload":
            write(new, keys + '\nenv = { A = "b" }')
        done = real_pool.run(verb)
        assert done.code == 1, done
        text = f"the new code answers GET / with {said}, the running code with 200: the old one stays"
        assert text in done.stderr, done
        assert pids(real_pool) == before
        assert get(port).body == b"old"
    write(FINE.replace("old", "new"), keys)
    real_pool.ok("restart")
    assert get(port).body == b"new"


@pytest.mark.parametrize(
    ("old", "new"),
    [(FINE, UPKEEP), (FINE, ENDLESS), (RAISES, RAISES), (RAISES, HANGS), (HANGS, RAISES), (RAISES, FINE)],
)
def test_what_is_meant_and_what_failed_before_is_replaced(
    real_pool: RealPool, write: Write, old: str, new: str
) -> None:
    write(old)
    real_pool.ok("start")
    before = pids(real_pool)
    write(new)
    assert not asked(real_pool), "a first start asks nothing"
    real_pool.ok("restart")
    assert pids(real_pool) != before
    assert {*asked(real_pool)} == {"GET / shop.example"}
    assert '"GET / ' not in real_pool.ok("logs", "web").stdout, "an access log is about clients"


def test_new_code_is_kept_out_if_any_of_the_running_processes_answers(
    real_pool: RealPool, write: Write
) -> None:
    write(BY_PROCESS, "workers = 2")
    real_pool.ok("start")
    before = pids(real_pool)
    for pid in before:
        works = real_pool.write(f"works-{pid}", "")
        done = real_pool.run("restart")
        assert (done.code, pids(real_pool)) == (1, before), done
        works.unlink()


@pytest.mark.parametrize(
    ("keys", "code", "paths"),
    [
        ('restart = { check = "/up" }', 1, {"GET /up shop.example"}),
        ("restart = { check = false }", 0, set()),
        ("overlap = false", 0, set()),
        ('health = "/"', 0, {"GET / shop.example"}),
    ],
)
def test_the_path_is_the_files(
    real_pool: RealPool, write: Write, keys: str, code: int, paths: set[str]
) -> None:
    write(FINE, keys)
    real_pool.ok("start")
    asked(real_pool)
    write(BY_PATH, keys)
    assert real_pool.run("restart").code == code
    assert {*asked(real_pool)} == paths


def test_a_developer_sees_the_error_page(real_pool: RealPool, write: Write) -> None:
    port = write(FINE)
    watching = real_pool.spawn("run", "--watch")
    try:
        wait_until(lambda: real_pool.run("wait", "web", "--timeout", "5s").code == 0)
        write(RAISES)
        wait_until(lambda: get(port).status == 500)
        write(RAISES, "workers = 2")
        wait_until(lambda: len(pids(real_pool)) == 2)
    finally:
        watching.terminate()
        watching.wait(60)
    assert not asked(real_pool)
