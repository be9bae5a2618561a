"""Any method from any thread: many at once, on one pool."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from poolctl import Field, Pool, Server, ServerConfig
from tests.unit.runners.scripted_runner import ScriptedRunner

THREADS = 8
TURNS = 120


def config(name: str, port: int) -> ServerConfig:
    return ServerConfig(name=name, bind=f"127.0.0.1:{port}", app="m:app")


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let threads take turns a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


def at_once(*work: Callable[[int], None]) -> None:
    """Run each function in two threads, all begun together; the first exception of any is raised."""
    raised: list[BaseException] = []
    gate = threading.Barrier(len(work) * 2)

    def run(function: Callable[[int], None]) -> None:
        gate.wait()
        try:
            for turn in range(TURNS):
                function(turn)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


@pytest.mark.slow
def test_reading_and_changing_at_once_is_always_consistent() -> None:
    fixed = {f"127.0.0.1:{port}" for port in range(1, 51)}
    pool = Pool(config(f"fixed-{port}", port) for port in range(1, 51))

    def come_and_go(turn: int) -> None:
        port = 1000 + turn
        pool.store_new(config(f"new-{port}", port))
        pool.load_and_delete(f"127.0.0.1:{port}")

    def replace(turn: int) -> None:
        pool.store_new(config(f"fixed-{turn % 50 + 1}", turn % 50 + 1))

    def merge(turn: int) -> None:
        pool.merge(Pool([config(f"fixed-{turn % 50 + 1}", turn % 50 + 1)]))

    def look(turn: int) -> None:
        assert fixed <= {*pool.filter(Field.NAME, regex="^fixed-")}
        assert {*pool.list(Field.BIND, Field.BIND, regex="^127")} >= fixed
        assert pool.list(Field.NAME, Field.NAME, "fixed-7") == ["fixed-7"]
        assert {*pool} >= fixed
        assert all(server.bind == bind for bind, server in pool.items())

    def walk(turn: int) -> None:
        seen: list[str] = []
        assert pool.walk(lambda bind, server: seen.append(bind))
        assert {*seen} >= fixed
        assert pool.walk_limit(lambda bind, server: True, "127.0.0.1:1", "127.0.0.1:1000")

    def whole(turn: int) -> None:
        assert {*pool.clone()} >= fixed
        assert len(pool.monitor_names()) >= 50
        assert repr(pool).startswith("<Pool ")

    at_once(come_and_go, replace, merge, look, walk, whole)
    assert {*pool} == fixed


def test_each_server_is_taken_out_by_exactly_one_caller() -> None:
    pool = Pool(config(f"s{port}", port) for port in range(1, TURNS + 1))
    taken: list[Server] = []

    def take(turn: int) -> None:
        server = pool.load_and_delete(f"127.0.0.1:{turn + 1}")
        if server is not None:
            taken.append(server)

    at_once(take, take, take, take)
    assert len(taken) == len({*map(id, taken)}) == TURNS
    assert len(pool) == 0


def test_of_overlapping_addresses_at_most_one_gets_in() -> None:
    pool = Pool()
    lucky = threading.Lock()
    stored: list[str] = []

    def store(bind: str) -> Callable[[int], None]:
        def do(turn: int) -> None:
            from poolctl import PoolAddError

            try:
                pool.store_new(ServerConfig(name="x", bind=bind.format(port=turn + 1), app="m:app"))
            except PoolAddError:
                return
            with lucky:
                stored.append(bind.format(port=turn + 1))

        return do

    at_once(store("127.0.0.1:{port}"), store("0.0.0.0:{port}"))
    by_port: dict[str, set[str]] = {}
    for bind in stored:
        by_port.setdefault(bind.rpartition(":")[2], set()).add(bind)
    assert [binds for binds in by_port.values() if len(binds) != 1] == []
    assert len(pool) == TURNS


def test_two_pools_that_are_merged_into_each_other_do_not_block() -> None:
    one = Pool([config("a", 1)])
    other = Pool([config("b", 2)])
    at_once(lambda turn: one.merge(other), lambda turn: other.merge(one))
    assert {*one} == {*other} == {"127.0.0.1:1", "127.0.0.1:2"}


@pytest.mark.slow
def test_lifecycle_from_many_threads_while_servers_come_and_go_leaves_nothing() -> None:
    runner = ScriptedRunner()
    pool = Pool([config("a", 1), config("b", 2)], runner=runner)

    def start(turn: int) -> None:
        pool.filter(Field.NAME, regex="[ab]").start_sync()

    def restart(turn: int) -> None:
        pool.filter(Field.NAME, "a").restart_sync()

    def come_and_go(turn: int) -> None:
        server = pool.store_new(config(f"c{threading.get_ident()}-{turn}", 100 + turn % 3))
        pool.delete(server.bind)

    def look(turn: int) -> None:
        pool.monitor_names()
        assert pool.uptime.total_seconds() >= 0
        for server in pool.values():
            assert repr(server)

    at_once(start, restart, come_and_go, look)
    assert pool.is_running
    pool.clean()
    pool.join_sync()
    assert runner.running == {}
    assert runner.opened == set()
