"""The runner of this process: listeners, the workers on them, what wakes a server, and what a forked child releases."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.errors import ServerError
from poolctl.runners.inline_runner import InlineRunner
from poolctl.runners.runner_protocol import Exit, Placement, WorkerFailed, app_state
from tests import serving
from tests.asgi_apps import hello, refusing, stubborn
from tests.own_process import run_in_own_process
from tests.ports import claim_port
from tests.serving import Client, turns, until


def server(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "web", "bind": f"127.0.0.1:{claim_port()}", "app": hello} | keys)


pytestmark = pytest.mark.loop(run=serving.PLAIN.run)


async def client_of(config: ServerConfig) -> Client:
    return await Client.connect(config.address.port or 0)


async def placed(runner: InlineRunner, config: ServerConfig) -> Placement:
    """A worker of the server that is ready."""
    await runner.open(config)
    placement = await runner.place(config, 1, 0)
    await runner.wait_for_begin_or_exit(placement)
    await runner.wait_until_ready(placement)
    return placement


def refuses(config: ServerConfig) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", config.address.port or 0)) != 0


async def test_hook_is_refused_and_counts_stacks_and_output_of_a_worker_are_unknown() -> None:
    runner = InlineRunner()
    config = server()
    with pytest.raises(ServerError, match="`hooks` cannot be honoured inside this process") as caught:
        await runner.begin_hook(config, "before_start")
    assert "ProcessRunner()" in caught.value.hint
    placement = await placed(runner, config)
    assert (runner.counts(placement), await runner.stacks(placement.id, 1.0)) == (None, None)
    assert await runner.logs("web", 10) == []
    await runner.aclose()


async def test_listener_is_opened_once_and_closed_with_its_path() -> None:
    with tempfile.TemporaryDirectory() as directory:
        runner = InlineRunner()
        config, path = server(), server(bind=f"unix:{directory}/web.sock")
        for _ in range(2):
            endpoints = await runner.open(config)
            assert endpoints == (config.bind,)
        await runner.open(path)
        assert os.listdir(directory) == ["web.sock"]
        assert repr(runner) == "<InlineRunner 0 workers on 2 listeners>"
        assert not refuses(config)
        await runner.close(config.key)
        await runner.close(config.key)
        assert refuses(config)
        await runner.aclose()
        assert os.listdir(directory) == []


async def test_closed_listener_refuses_connections_even_if_another_process_holds_it() -> None:
    runner = InlineRunner()
    config = server()
    await runner.open(config)
    held = [os.dup(int(fd)) for fd in os.listdir("/proc/self/fd") if _is_bound_to(int(fd), config)]
    await runner.close(config.key)
    assert refuses(config)
    for fd in held:
        os.close(fd)


async def test_worker_is_placed_on_its_listener_with_the_state_of_the_caller() -> None:
    runner = InlineRunner()
    config = server()
    token = app_state.set({"database": "here"})
    placement = await placed(runner, config)
    app_state.reset(token)
    assert placement == Placement.of("web", 1, 0, pid=os.getpid())
    client = await client_of(config)
    assert (await client.get("/state"))[2] == b"{'database': 'here'}"
    with await runner.connect_for_probe(placement, "http", True) as probe:
        probe.setblocking(False)
        asking = Client(*await asyncio.open_connection(sock=probe.dup()))
        assert (await asking.get())[0] == 200
    watching = asyncio.ensure_future(runner.wait_for_exit(placement))
    assert (await runner.stop(placement, 30)).ok
    assert (await watching).ok
    assert repr(runner) == "<InlineRunner 0 workers on 1 listeners>"
    gone = Exit(message="has ended before")
    assert (await runner.stop(placement, 30), await runner.wait_for_exit(placement)) == (gone, gone)
    await runner.begin_drain(placement)
    await runner.drain(placement)
    await runner.set_accepting(placement, True)
    await runner.wait_for_begin_or_exit(placement)
    await runner.aclose()


async def test_worker_that_does_not_start_has_failed_with_its_reason() -> None:
    runner = InlineRunner()
    with pytest.raises(WorkerFailed, match="exited with status 3 before it was ready: no database"):
        await placed(runner, server(app=refusing))
    await runner.aclose()


async def test_worker_that_is_busy_at_the_timeout_is_cancelled() -> None:
    runner = InlineRunner()
    placement = await placed(runner, server(app=stubborn))
    expected = Exit(signal=9, message="cancelled after 0.01 s")
    assert await runner.stop(placement, 0.01) == expected
    assert await runner.wait_for_exit(placement) == expected
    await runner.aclose()


async def test_left_worker_accepts_no_more_and_drain_returns_when_it_has_ended() -> None:
    runner = InlineRunner()
    config = server(drain_timeout=30)
    placement = await placed(runner, config)
    client = await client_of(config)
    await client.get()
    await runner.begin_drain(placement)
    waiting = await client_of(config)
    await waiting.send()
    await turns()
    assert (await client.get())[1]["connection"] == "close"
    await runner.drain(placement)
    assert (await runner.wait_for_exit(placement)).ok
    successor = await runner.place(config, 2, 0)
    await runner.wait_until_ready(successor)
    assert (await waiting.answer())[2] == b"hello", "it has waited in the listener"
    await runner.aclose()


async def test_armed_listener_reports_the_first_connection_alone_which_the_next_worker_accepts() -> None:
    runner = InlineRunner()
    config = server()
    await runner.open(config)
    requests: list[int] = []
    runner.arm(config, lambda: requests.append(1))
    await turns()
    assert requests == []
    client = await client_of(config)
    await client.send()
    await until(lambda: requests)
    await client_of(config)
    await turns()
    assert requests == [1]
    await runner.wait_until_ready(await runner.place(config, 1, 0))
    assert (await client.answer())[2] == b"hello"
    await runner.aclose()


@pytest.mark.parametrize("ends", ["disarm", "close"])
async def test_disarmed_listener_reports_nothing(ends: str) -> None:
    runner = InlineRunner()
    config = server()
    await runner.open(config)
    requests: list[int] = []
    runner.arm(config, lambda: requests.append(1))
    if ends == "close":
        await runner.close(config.key)
        await runner.open(config)
    else:
        runner.disarm(config.key)
    await client_of(config)
    await turns()
    assert requests == []
    await runner.aclose()


def test_inherited_listener_is_returned_unchanged() -> None:
    run_in_own_process("""
import asyncio, os, socket
from poolctl import ServerConfig
from poolctl.runners.inline_runner import InlineRunner
from tests.asgi_apps import hello
os.open(os.devnull, os.O_RDONLY)  # number 3
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
async def work():
    runner = InlineRunner()
    await runner.open(ServerConfig(name="web", bind="fd:web", app=hello))
    await runner.aclose()
asyncio.run(work())
socket.create_connection(listener.getsockname(), timeout=60).close()
""")


def _is_bound_to(fd: int, config: ServerConfig) -> bool:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    name = sock.getsockname()
    sock.detach()
    return bool(name == ("127.0.0.1", config.address.port))
