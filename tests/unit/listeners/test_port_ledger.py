"""Automatic ports: chosen once, remembered, never somebody else's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.address import parse
from poolctl.errors import ServerError
from poolctl.listeners.port_ledger import PortLedger, is_free

AUTO = parse("127.0.0.1:auto")


def ledger(path: Path, first: int, count: int = 10, key: str = "0") -> PortLedger:
    return PortLedger(str(path / "ports.json"), first, first + count - 1, key=key)


def ledger_of_pool(root: Path, key: str, first: int, count: int) -> PortLedger:
    """As the pools of one user have them, beside each other."""
    (root / key).mkdir(exist_ok=True)
    return ledger(root / key, first, count, key)


def test_server_keeps_its_port_across_ledgers(tmp_path: Path, free_port: Callable[[], int]) -> None:
    first = free_port()
    port = ledger(tmp_path, first).assign_port("web", AUTO)
    assert port >= first
    with socket.create_server(("127.0.0.1", port)):  # its own listener, say
        assert ledger(tmp_path, first).assign_port("web", AUTO) == port


def test_two_servers_never_get_one_port(tmp_path: Path, free_port: Callable[[], int]) -> None:
    book = ledger(tmp_path, free_port(), 50)
    assert len({book.assign_port(name, AUTO) for name in "abcde"}) == 5


def test_ports_in_use_or_given_in_the_file_are_avoided(tmp_path: Path, free_port: Callable[[], int]) -> None:
    first = free_port()
    with socket.create_server(("127.0.0.1", first)):
        chosen = ledger(tmp_path, first).assign_port("web", AUTO, avoid={first + 1})
    assert chosen > first + 1


def test_port_that_left_the_range_or_is_taken_is_chosen_again(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    first = free_port()
    port = ledger(tmp_path, first).assign_port("web", AUTO)
    assert ledger(tmp_path, port + 1).assign_port("web", AUTO) != port
    again = ledger(tmp_path, first).assign_port("web", AUTO)
    assert ledger(tmp_path, first).assign_port("web", AUTO, avoid={again}) != again


def test_removed_server_gives_its_port_back(tmp_path: Path, free_port: Callable[[], int]) -> None:
    book = ledger(tmp_path, free_port())
    old, other = book.assign_port("old", AUTO), book.assign_port("other", AUTO)
    book.keep_only(["other"])
    assert book.assign_port("new", AUTO) == old
    assert book.assign_port("other", AUTO) == other
    assert repr(book).endswith("2 chosen>")


def test_exhausted_port_range_error_names_the_setting(tmp_path: Path, free_port: Callable[[], int]) -> None:
    book = ledger(tmp_path, free_port(), 1)
    book.assign_port("a", AUTO)
    with pytest.raises(ServerError, match="no port is free") as caught:
        book.assign_port("b", AUTO)
    assert "port_range" in caught.value.hint
    assert caught.value.name == "b"


def test_port_that_cannot_be_stored_is_an_error_of_its_server(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    first = free_port()
    path = tmp_path / f"{'x' * 240}.json"  # no file beside it can have a longer name
    path.write_text(f'{{"old": {first}}}')
    book = PortLedger(str(path), first, first + 9, key="0")
    book.keep_only([])  # an old port that stays is no matter
    with pytest.raises(ServerError, match=r"its port cannot be stored: .*: File name too long") as caught:
        book.assign_port("web", AUTO)
    assert caught.value.name == "web"
    assert "instead of auto" in caught.value.hint


@pytest.mark.parametrize("content", ["", "[1]", '{"web": "x"}', '{"web": 70000}', "{"])
def test_damaged_ledger_counts_as_empty(content: str, tmp_path: Path, free_port: Callable[[], int]) -> None:
    (tmp_path / "ports.json").write_text(content)
    first = free_port()
    assert first <= ledger(tmp_path, first).assign_port("web", AUTO) < first + 10


def test_address_without_a_host_needs_the_port_on_both_ip_versions(free_port: Callable[[], int]) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        assert is_free(parse("127.0.0.1:auto"), port)
        assert not is_free(parse(":auto"), port)


def test_vacated_port_is_the_last_choice(tmp_path: Path, free_port: Callable[[int], int]) -> None:
    first = free_port(2)
    book = ledger(tmp_path, first, 2)
    old = book.assign_port("old", AUTO)
    with socket.create_server(("127.0.0.1", old)):
        other = book.assign_port("b", AUTO, vacated=[old])
        assert other != old
        with pytest.raises(ServerError):
            book.assign_port("new", AUTO, avoid={other})
        assert book.assign_port("new", AUTO, avoid={other}, vacated=[old]) == old
        with pytest.raises(ServerError):
            book.assign_port("more", AUTO, avoid={other, old}, vacated=[old])
    assert ledger(tmp_path, first, 2).stored_port("new") == old


def test_search_begins_elsewhere_in_each_directory_and_wraps_around(
    tmp_path: Path, free_port: Callable[[int], int]
) -> None:
    first = free_port(10)
    begun = set()
    for number in range(30):
        (directory := tmp_path / f"{number}").mkdir()
        book = ledger(directory, first)
        ports = [book.assign_port(name, AUTO) for name in "abcdefghij"]
        assert sorted(ports) == [*range(first, first + 10)]
        begun.add(ports[0])
    assert len(begun) > 1


def test_port_that_another_pool_has_chosen_is_taken_only_if_no_other_is_left(
    tmp_path: Path, free_port: Callable[[int], int]
) -> None:
    first = free_port(2)
    taken = ledger_of_pool(tmp_path, "0", first, 2).assign_port("web", AUTO)
    other = ledger_of_pool(tmp_path, "2", first, 2)
    found = [other.assign_port(name, AUTO) for name in ("web", "docs")]
    assert found == [*({first, first + 1} - {taken}), taken]


def test_pools_that_begin_at_one_place_at_once_choose_different_ports(
    tmp_path: Path, free_port: Callable[[int], int]
) -> None:
    first, barrier = free_port(8), threading.Barrier(8)
    found: list[int] = []

    def choose(key: str) -> None:
        book = ledger_of_pool(tmp_path, key, first, 8)
        barrier.wait(60)
        found.append(book.assign_port("web", AUTO))

    threads = [threading.Thread(target=choose, args=(f"{number}0",)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert sorted(found) == [*range(first, first + 8)]


def test_port_in_use_is_replaced_at_rest_but_not_for_connections_that_ended(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    first = free_port()
    book = ledger(tmp_path, first)
    port = book.assign_port("web", AUTO)
    assert book.assign_port("web", AUTO, at_rest=True) == port
    with socket.create_server(("127.0.0.1", port)) as listener:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = listener.accept()
        assert ledger(tmp_path, first).assign_port("web", AUTO) == port
        accepted.close()  # first, so that this port has the connection in TIME_WAIT
        client.close()
    assert not is_free(AUTO, port)
    assert book.assign_port("web", AUTO, at_rest=True) == port
    with socket.create_server(("127.0.0.1", port)):
        assert book.assign_port("web", AUTO, at_rest=True) != port
