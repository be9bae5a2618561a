"""Listeners and adoption pairs are held here and by the keeper; a gateway releases a pair before it is closed."""

from __future__ import annotations

import asyncio

from poolctl.keeper import connection_handover
from tests.unit.runners.test_local_runner import Stage, config, run


def test_gateway_gets_the_pair_of_a_routed_server_and_of_no_other() -> None:
    async def work() -> None:
        stage = Stage()
        stage.pairs.open(config())
        stage.publish()
        assert stage.gateway.pairs == {}
        stage.publish(config())
        assert list(stage.gateway.pairs) == ["web"]
        stage.publish()
        assert stage.tidied == [config().key]
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_connections_that_no_worker_has_taken_from_the_pair_yet_are_counted() -> None:
    async def work() -> None:
        stage = Stage()
        assert stage.pairs.waiting(config().key) == 0
        stage.publish(config())
        for count in range(5):
            assert stage.pairs.waiting(config().key) == count
            stage.given.append(stage.pass_one())
        take = stage.pairs.left(config().key)
        assert take is not None
        connection_handover.take(take).close()
        assert stage.pairs.waiting(config().key) == 4
        stage.publish()
        await stage.pairs.close_all()
        assert stage.pairs.waiting(config().key) == 0
        for client in stage.given:
            client.close()
        stage.close()

    run(work())


def test_gateway_hears_of_workers_that_leave_a_routed_server_and_no_other() -> None:
    async def work() -> None:
        stage = Stage()
        await stage.pairs.leaving(config().key)
        stage.publish(config())
        await stage.pairs.leaving(config().key)
        await stage.pairs.leaving("127.0.0.1:1")
        assert stage.gateway.left == ["web"]
        stage.gateway.let_go.set()
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_pair_is_closed_after_the_gateway_has_let_go_and_what_waits_in_it_goes_back() -> None:
    async def work() -> None:
        stage = Stage()
        stage.publish(config())
        with stage.pass_one() as client:
            closing = asyncio.ensure_future(stage.pairs.close(config().key))
            await stage.gateway.asked.wait()
            give = stage.gateway.pairs["web"]
            assert give.fileno() >= 0
            stage.gateway.let_go.set()
            await closing
            assert give.fileno() < 0
            with connection_handover.take(stage.taken_back) as taken:  # type: ignore[union-attr]
                client.sendall(b"x")
                assert taken.recv(1) == b"x"
        stage.close()

    run(work())


def test_replaced_pair_is_announced_at_once_and_the_old_one_closed_once_the_gateway_has_let_go() -> None:
    async def work() -> None:
        stage = Stage()
        stage.publish(config())
        old = stage.gateway.pairs["web"]
        stage.pairs.open(config(user="daemon"))
        await stage.gateway.asked.wait()
        assert stage.gateway.pairs["web"] is not old
        assert old.fileno() >= 0
        stage.gateway.let_go.set()
        while old.fileno() >= 0:
            await asyncio.sleep(0)
        await stage.pairs.close_all()
        stage.close()

    run(work())


def test_after_a_takeover_a_pair_is_in_use_until_the_first_table_says_otherwise() -> None:
    async def work() -> None:
        stage = Stage()
        stage.pairs.expect_gateway()
        stage.pairs.open(config())
        assert stage.pairs.passed(config().key)
        closing = asyncio.ensure_future(stage.pairs.close(config().key))
        await asyncio.sleep(0)
        assert not closing.done()
        stage.publish()
        await closing
        assert not stage.pairs.passed(config().key)
        stage.close()

    run(work())
