"""Programs that embed a pool, each run to its end as a process of its own: whatever their servers do, they do end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def run_program(text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program that embeds a pool, run to its end within a deadline."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False, **options,
    )  # fmt: skip


@pytest.mark.heavy_variants
@pytest.mark.parametrize("app", ["hello", "stubborn"])
def test_a_program_that_ends_while_servers_run_does_not_hang(app: str) -> None:
    done = run_program(
        f"""
        from poolctl import Pool, ServerConfig
        from tests import asgi_apps
        from tests.http_get import get
        from tests.ports import claim_port

        pool = Pool([ServerConfig(
            name="web", bind=f"127.0.0.1:{{claim_port()}}", app=asgi_apps.{app}, stop_timeout=0.5)])
        pool.start_sync()
        print(get(next(iter(pool))).status)
        """
    )
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("runner", ["None", "ProcessRunner()"], ids=["inline", "processes"])
@pytest.mark.parametrize("end", ["pool.stop_sync", "lambda: asyncio.run(pool.stop())", "print"])
def test_a_pool_is_stopped_at_exit_and_leaves_nothing_open(runner: str, end: str, tmp_path: Path) -> None:
    done = run_program(
        f"""
        import asyncio, atexit
        from poolctl import Pool, ServerConfig
        from poolctl.runners.embedded_runner import ProcessRunner

        pool = Pool([ServerConfig(name="web", bind="127.0.0.1:auto", app="tests.asgi_apps:hello")], runner={runner})
        pool.start_sync()
        atexit.register(lambda: print("stopped"))
        atexit.register({end})
        """,
        env={**os.environ, "PYTHONWARNINGS": "always::ResourceWarning", "TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "stopped", "")
    assert [*tmp_path.iterdir()] == []


def test_lifespans_are_shut_down_when_the_program_ends() -> None:
    done = run_program(
        """
        from poolctl import Pool, ServerConfig
        from tests.ports import claim_port

        async def app(scope, receive, send):
            while True:
                kind = (await receive())["type"]
                print(kind, flush=True)
                await send({"type": kind + ".complete"})
                if kind == "lifespan.shutdown":
                    return

        Pool([ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app=app)]).start_sync()
        """
    )
    assert (done.returncode, done.stdout) == (0, "lifespan.startup\nlifespan.shutdown\n"), done.stderr


@pytest.mark.heavy
def test_an_import_that_hangs_keeps_no_program_from_ending(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import threading\nthreading.Event().wait()\n")
    done = run_program(
        f"""
        from poolctl import Pool, PoolStartError, ServerConfig
        from tests.ports import claim_port

        pool = Pool([ServerConfig(name="web", bind=f"127.0.0.1:{{claim_port()}}", app="hangs:app",
                                  app_dir={str(tmp_path)!r})])
        try:
            pool.start_sync(timeout=0.3)
        except PoolStartError as error:
            print(error.exceptions[0].message)
        """
    )
    assert (done.returncode, done.stdout) == (0, "was not ready within 0.3 s\n"), done.stderr


@pytest.mark.heavy
def test_threads_of_sync_endpoints_keep_no_program_from_ending() -> None:
    pytest.importorskip("starlette")
    done = run_program(
        """
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route
        from poolctl import Pool, ServerConfig
        from tests.http_get import get
        from tests.ports import claim_port

        def page(request):
            return PlainTextResponse("from a thread")

        app = Starlette(routes=[Route("/", page)])
        pool = Pool([ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app=app)])
        pool.start_sync()
        print(get(next(iter(pool))).text)
        """
    )
    assert (done.returncode, done.stdout) == (0, "from a thread\n"), done.stderr


def test_an_interrupt_of_a_blocking_start_reaches_the_caller() -> None:
    done = run_program(
        """
        import os, signal, threading
        from poolctl import Pool, ServerConfig, State
        from tests.asgi_apps import hanging
        from tests.deadline import wait_until
        from tests.ports import claim_port

        pool = Pool([ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app=hanging)])
        server = next(iter(pool.values()))

        def interrupt():
            wait_until(lambda: server.state is State.STARTING)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            pool.start_sync()
        except KeyboardInterrupt:
            print("interrupted")
        wait_until(lambda: server.state is State.STOPPED)
        """
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@pytest.mark.heavy
def test_a_monitor_that_has_no_descriptor_left_is_a_pool_monitor_error() -> None:
    done = run_program(
        """
        import os, resource
        from poolctl import Pool, PoolMonitorError, ServerConfig
        from tests.asgi_apps import hello
        from tests.ports import claim_port

        pool = Pool([ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app=hello)])
        pool.start_sync()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        try:
            pool.monitor()
        except PoolMonitorError as error:
            found = error
        for fd in held:
            os.close(fd)
        print(found.code, found.exceptions[0].message, found.exceptions[0].hint, sep="|")
        """
    )
    assert done.stdout.strip() == (
        "1326|no connection can be made: Too many open files|raise the limit of open files: ulimit -n"
    ), done.stderr


def test_hung_server_of_this_process_shows_where_it_hangs() -> None:
    done = run_program(
        """
        import threading
        from poolctl import Pool, ServerConfig
        from tests.http_get import get
        from tests.ports import claim_port

        begun, over = threading.Event(), threading.Event()

        def hang():
            begun.set()
            over.wait(60)

        async def app(scope, receive, send):
            if scope["type"] == "http":
                hang()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b""})

        pool = Pool([ServerConfig(name="web", bind=f"127.0.0.1:{claim_port()}", app=app)])
        pool.start_sync()
        threading.Thread(target=get, args=(next(iter(pool)),)).start()
        begun.wait(60)
        (found,) = pool.stacks()
        over.set()
        main, *others = found.threads
        print(found.name, found.source, main.name, [f.function for f in main.frames if f.function in ("hang", "app")])
        print(any("run_asgi" in frame.function for task in found.tasks for frame in task.frames))
        """
    )
    expected = "web python poolctl-engine ['hang', 'app']\nTrue\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
