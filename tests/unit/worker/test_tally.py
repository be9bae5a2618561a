"""The page on which a worker counts, as its supervisor reads it."""

from __future__ import annotations

import fcntl
import os

import pytest

from poolctl.worker import tally
from tests.serving import blank_page


def test_count_of_one_process_is_read_by_another() -> None:
    fd = tally.new_page()
    page = tally.map_page(fd)
    page[tally.STARTED] += 3
    counts = tally.read_page(fd)
    os.close(fd)
    assert counts is not None
    assert counts[tally.STARTED] == 3


def test_page_of_another_layout_or_size_is_not_read() -> None:
    fd = tally.new_page()
    os.pwrite(fd, (tally.LAYOUT + 1).to_bytes(8, "little"), 0)
    assert tally.read_page(fd) is None
    os.close(fd)
    short = os.memfd_create("short")
    os.pwrite(short, tally.LAYOUT.to_bytes(8, "little"), 0)
    assert tally.read_page(short) is None
    os.close(short)


def test_of_a_worker_that_has_ended_nothing_is_open_and_what_was_under_way_is_lost() -> None:
    page = blank_page()
    page[tally.STARTED] = 5
    page[tally.BUCKETS] = 3
    page[tally.OPEN_CONNECTIONS] = page[tally.OPEN_WEBSOCKETS] = 2
    left = tally.completed(page.tolist())
    assert tally.in_flight(left) == 0
    assert left[tally.DISCONNECTED] == 2
    assert (left[tally.OPEN_CONNECTIONS], left[tally.OPEN_WEBSOCKETS]) == (0, 0)
    total = tally.completed(blank_page().tolist())
    tally.add(total, left)
    tally.add(total, left)
    assert (total[tally.STARTED], tally.responses(total)) == (10, 6)


def test_requests_of_each_route_are_counted_beside_those_of_the_worker() -> None:
    fd = tally.new_page()
    page = tally.map_page(fd)
    for count, alias in enumerate(("users", "orders", "users"), 1):
        page[tally.route_slot(page, alias)] += count
        page[tally.STARTED] += count
    counts = tally.read_page(fd) or []
    os.close(fd)
    expected = {tally.route_mark("users"): 4, tally.route_mark("orders"): 2}
    assert tally.passed(counts) == tally.passed(tally.completed(counts)) == expected
    assert tally.passed(tally.completed(blank_page().tolist())) == {}


def test_errors_of_each_route_are_counted_apart_from_its_requests() -> None:
    page = blank_page()
    page[tally.route_slot(page, "users")] += 3
    page[tally.error_slot(page, "users") or 0] += 2
    page[tally.STARTED] += 3
    counts = page.tolist()
    assert tally.passed(counts) == {tally.route_mark("users"): 3}
    assert tally.by_route(counts) == {tally.route_mark("users"): 3, tally.error_mark("users"): 2}
    for number in range(tally.SIZE_BYTES // 8):
        tally.route_slot(page, str(number))
    assert tally.error_slot(page, "orders") is None
    assert tally.error_slot(page, "users") is not None


def test_routes_for_which_a_page_has_no_room_share_the_last_count() -> None:
    page = blank_page()
    slots = [tally.route_slot(page, str(number)) for number in range(tally.SIZE_BYTES // 8)]
    assert max(slots) < tally.SIZE_BYTES // 8
    assert slots[-1] == slots[-2] != slots[0]
    assert [tally.route_slot(page, str(number)) for number in range(3)] == slots[:3]
    page[slots[-1]] += 7
    page[tally.STARTED] += 7
    assert 7 in tally.passed(page.tolist()).values()


def test_page_keeps_its_size_whatever_an_application_does_with_it() -> None:
    fd = tally.new_page()
    try:
        assert tally.is_page(fd)
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", tally.STACKS_AT + tally.STACK_BYTES)
        tally.map_page(fd)[1] = 7
        assert (tally.read_page(fd) or [])[1] == 7
    finally:
        os.close(fd)


def test_only_a_sealed_page_is_accepted_as_a_tally() -> None:
    unsealed = os.memfd_create("x")
    os.ftruncate(unsealed, tally.SIZE_BYTES)
    pipe = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (unsealed, *pipe, null):
        assert not tally.is_page(fd)
        os.close(fd)


def test_worker_that_has_not_begun_writes_no_stacks() -> None:
    fd = tally.new_page()
    assert not tally.writes_stacks(fd)
    tally.promise_stacks(fd)
    assert tally.writes_stacks(fd)
    assert tally.read_page(fd) is not None
    os.close(fd)


def test_file_of_another_size_is_no_page() -> None:
    fd, page = os.memfd_create("other", os.MFD_ALLOW_SEALING), tally.new_page()
    os.ftruncate(fd, tally.SIZE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    assert [tally.is_page(each) for each in (fd, page)] == [False, True]
    for each in (fd, page):
        os.close(each)
