"""`logs -f` and `events -f` of a pool in which nothing happens, when whoever read them has gone: `| head -1`."""

from __future__ import annotations

import pytest

from tests.real_pool import RealPool

FOLLOWERS = pytest.mark.parametrize("verb", ["logs", "events"])


@pytest.mark.heavy_variants
@FOLLOWERS
def test_a_follower_ends_when_its_reader_does(real_pool: RealPool, verb: str) -> None:
    real_pool.write_hello("web")
    real_pool.ok("start")
    _gone_after_a_line(real_pool, verb)


@pytest.mark.heavy_variants
@FOLLOWERS
def test_also_of_a_pool_that_has_ended(real_pool: RealPool, verb: str) -> None:
    real_pool.write_hello("web")
    real_pool.ok("start")
    real_pool.ok("stop")
    _gone_after_a_line(real_pool, verb)


def _gone_after_a_line(pool: RealPool, verb: str) -> None:
    following = pool.spawn(verb, "-f", "-n", "1")
    assert following.stdout is not None
    assert following.stderr is not None
    assert following.stdout.readline()
    following.stdout.close()
    assert following.wait(60) == 0
    assert following.stderr.read() == ""
