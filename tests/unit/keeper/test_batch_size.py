"""How many connections are taken at once follows how many there are."""

from __future__ import annotations

from poolctl.keeper.batch_size import BatchSize


def take(batch: BatchSize, there: int) -> int:
    """Take some of those that are there; how many are to be taken next."""
    batch.took(min(there, batch.size))
    return batch.size


def test_batch_grows_while_it_is_filled_and_shrinks_to_single_ones() -> None:
    batch = BatchSize(16)
    assert [take(batch, 1000) for _ in range(6)] == [2, 4, 8, 16, 16, 16]
    there = (16, 5, 2, 1, 0, 8, 1, 1, 0, 0)
    assert [take(batch, count) for count in there] == [16, 16, 16, 8, 4, 8, 4, 2, 1, 1]
    assert [take(batch, 1000) for _ in range(3)] == [2, 4, 8]


def test_single_connections_are_hardly_ever_followed_by_a_try_for_another() -> None:
    batch = BatchSize(16)
    tried = 0
    for _ in range(1000):
        tried += batch.size > 1
        take(batch, 1)
    assert tried < 70
    while batch.size == 1:
        take(batch, 1000)
    assert [take(batch, 1000) for _ in range(4)] == [4, 8, 16, 16]  # a burst ends that
    batch.restart()
    assert batch.size == 1
    assert take(batch, 1000) == 2
