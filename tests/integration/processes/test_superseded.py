"""Workers that are not wanted any more before they have served: nobody waits for what they still have to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.processes import is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# Waits at its import, or in its startup, for a file.
APP = """
import asyncio, os, pathlib, time
WHO = os.environ["WHO"]

def here(where):
    pathlib.Path(f"{WHO}.writing").write_text(str(os.getpid()))
    os.rename(f"{WHO}.writing", f"{WHO}.{where}")

here("importing")
while not os.path.exists(f"{WHO}.may_import"):
    time.sleep(0.02)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        here("starting")
        try:
            while not os.path.exists(f"{WHO}.may_start"):
                await asyncio.sleep(0.02)
        finally:
            here("through")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": WHO.encode()})
"""
PRELOADED = pytest.mark.parametrize("preload", ["false", "true"], ids=["imported", "preloaded"])


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write("slow.py", APP)
    return real_pool


def write(pool: RealPool, port: int, who: str, preload: str = "false") -> None:
    server = f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "slow:app"\npreload = {preload}\n'
    pool.write("pool.toml", f'{server}env = {{ WHO = "{who}" }}\n')


def let(pool: RealPool, who: str, *what: str) -> None:
    for each in what or ("may_import", "may_start"):
        (pool.directory / f"{who}.{each}").touch()


def process(pool: RealPool, until: Callable[..., Any], who: str, where: str) -> int:
    path: Path = pool.directory / f"{who}.{where}"
    until(path.exists)
    return int(path.read_text())


def succeeded(command: subprocess.Popen[str]) -> bool:
    out, err = command.communicate(timeout=60)
    assert command.returncode == 0, out + err
    return True


@pytest.mark.heavy
@pytest.mark.heavy_variants
@PRELOADED
def test_a_replacement_that_still_imports_ends_when_another_is_ordered(
    pool: RealPool, free_port: Any, until: Any, preload: str
) -> None:
    port = free_port()
    write(pool, port, "old", preload)
    let(pool, "old")
    pool.ok("start")
    write(pool, port, "first", preload)
    first = pool.spawn("reload")
    importing = process(pool, until, "first", "importing")
    write(pool, port, "second", preload)
    second = pool.spawn("reload")
    process(pool, until, "second", "importing")
    until(lambda: not is_alive(importing))
    assert get(port).body == b"old"
    let(pool, "second")
    assert succeeded(second)
    assert succeeded(first), "it waits for what is wanted by now"
    assert get(port).body == b"second"


@pytest.mark.heavy
def test_worker_whose_startup_has_begun_is_ended(pool: RealPool, free_port: Any, until: Any) -> None:
    port = free_port()
    write(pool, port, "old")
    let(pool, "old")
    pool.ok("start")
    write(pool, port, "first")
    let(pool, "first", "may_import")
    first = pool.spawn("reload")
    starting = process(pool, until, "first", "starting")
    write(pool, port, "second")
    second = pool.spawn("reload")
    process(pool, until, "second", "importing")
    until(lambda: not is_alive(starting))
    assert process(pool, until, "first", "through") == starting
    let(pool, "second")
    assert succeeded(second)
    assert succeeded(first)


@PRELOADED
def test_a_stop_waits_for_no_import(pool: RealPool, free_port: Any, until: Any, preload: str) -> None:
    write(pool, free_port(), "web", preload)
    pool.append('stop_timeout = "100s"\n')
    pool.ok("start", "--no-wait")
    process(pool, until, "web", "importing")
    pool.ok("stop", timeout_seconds=50)  # stop_timeout is longer
    until(lambda: not pool.processes())
