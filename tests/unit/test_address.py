"""Addresses: any spelling in, one canonical key out (contract §1)."""

from __future__ import annotations

import copy
import os
import pickle
from collections import Counter
from typing import NamedTuple

import pytest

from poolctl.address import Address, AddressError, canonical, find_overlapping_unequal, overlaps, parse


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        (" 127.0.0.1:8080 ", "127.0.0.1:8080"),
        ("127.0.0.1:08080", "127.0.0.1:8080"),
        (":8080", "0.0.0.0:8080"),
        ("*:8080", "0.0.0.0:8080"),
        ("0.0.0.0:8080", "0.0.0.0:8080"),
        ("localhost:8080", "localhost:8080"),
        ("LocalHost.:8080", "localhost:8080"),
        ("a." * 126 + "a:80", "a." * 126 + "a:80"),
        ("[::1]:8080", "[::1]:8080"),
        ("[0:0:0:0:0:0:0:1]:8080", "[::1]:8080"),
        ("[0000::0001]:8080", "[::1]:8080"),
        ("[::]:8080", "[::]:8080"),
        ("[2001:DB8:0:0:1:0:0:1]:80", "[2001:db8::1:0:0:1]:80"),
        ("[1:0:2:0:3:0:4:0]:80", "[1:0:2:0:3:0:4:0]:80"),
        ("[::ffff:127.0.0.1]:8080", "127.0.0.1:8080"),
        ("[::FFFF:7f00:1]:8080", "127.0.0.1:8080"),
        ("[fe80::1%eth0]:8080", "[fe80::1%eth0]:8080"),
        ("http://[fe80::1%25eth0]:8080", "[fe80::1%eth0]:8080"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("HTTPS://127.0.0.1:8080/", "127.0.0.1:8080"),
        ("tcp://:8080", "0.0.0.0:8080"),
        ("127.0.0.1:http", "127.0.0.1:80"),
        ("127.0.0.1:HTTPS", "127.0.0.1:443"),
        ("bücher.example:80", "xn--bcher-kva.example:80"),
        ("127.0.0.1:auto", "127.0.0.1:auto"),
        ("127.0.0.1:AUTO", "127.0.0.1:auto"),
        ("127.0.0.1:0", "127.0.0.1:auto"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
        ("UNIX:/run//x/../a.sock", "unix:/run/a.sock"),
        ("unix:./a.sock", "unix:/srv/a.sock"),
        ("unix:a.sock", "unix:/srv/a.sock"),
        ("unix://a.sock", "unix:/srv/a.sock"),
        ("unix:/run/with blank.sock", "unix:/run/with blank.sock"),
        ("fd:3", "fd:3"),
        ("fd:web", "fd:web"),
        ("job:migrate", "job:migrate"),
    ],
)
def test_every_spelling_has_its_one_key(written: str, key: str) -> None:
    assert canonical(written, base_dir="/srv") == key


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("8080", 'write ":8080"'),
        ("localhost", "no port"),
        ("localhost:", "no port"),
        ("http://localhost", "no port"),
        ("[::1]", "no port"),
        ("::1:8080", "brackets"),
        ("127.0.0.1:65536", "out of range"),
        ("127.0.0.1:99999999999999999999999999", "out of range"),
        ("127.0.0.1:-1", "not a port"),
        ("127.0.0.1:+80", "not a port"),
        ("127.0.0.1:8_0", "not a port"),
        ("127.0.0.1:８０", "not a port"),
        ("127.0.0.1:80.0", "not a port"),
        ("127.0.0.1:no-such-service", "not a service"),
        ("127.0.0.1:autoo", 'write "127.0.0.1:auto"'),
        ("localhost", 'write "localhost:8080", or "localhost:auto"'),
        ("256.0.0.1:80", "IPv4"),
        ("127.1:80", "IPv4"),
        ("2130706433:80", "IPv4"),
        ("0x7f000001:80", "IPv4"),
        ("0177.0.0.1:80", "IPv4"),
        ("1.2.3.4.5:80", "IPv4"),
        ("[::g]:80", "IPv6"),
        ("[1.2.3.4]:80", "IPv6"),
        ("[::1%]:80", "zone"),
        ("[::1%a b]:80", "blank"),
        ("-web:80", "host name"),
        ("a..b:80", "host name"),
        ("a" * 64 + ":80", "host name"),
        ("a." * 126 + "aa:80", "host name"),
        ("\u2028:80", "host name"),
        ("ftp://localhost:21", "scheme"),
        ("http://localhost:80/path", "path"),
        ("http://user@localhost:80", "user"),
        ("localhost:80?x", "query"),
        ("/run/a.sock", "unix:/run/a.sock"),
        ("127.0.0.1:80\n", None),
        ("127.0.0.1 :80", "blank"),
        ("127.0.0.1:80\x00", "control"),
        ("unix:", "missing"),
        ("unix:a\0b", "control character"),
        ("unix:a\ud800", "surrogate"),
        ("unix:@name", "abstract"),
        ("fd:", "no inherited socket"),
        ("fd:2", "fd:3"),
        ("fd:99999999999999", "fd:3"),
        ("fd:a:b", "no inherited socket"),
        ("job:", "job"),
        ("job:a b", "blank"),
    ],
)
def test_a_wrong_address_says_why_and_what_to_write(written: str, cause: str | None) -> None:
    if cause is None:
        # A newline at the end is a blank at the end.
        assert canonical(written) == "127.0.0.1:80"
        return
    with pytest.raises(AddressError) as caught:
        parse(written)
    assert cause in str(caught.value)
    assert caught.value.hint


def test_value_that_is_no_text_is_no_address() -> None:
    with pytest.raises(AddressError):
        parse(8080)  # type: ignore[arg-type]


def test_only_an_address_without_a_host_is_dual() -> None:
    assert parse(":80").dual
    assert parse(":80").bind == ":80"
    assert not parse("*:80").dual
    assert not parse("0.0.0.0:80").dual
    assert parse(":auto").with_port(81).dual


def test_an_automatic_port_takes_the_port_that_is_chosen() -> None:
    address = parse("[::1]:auto")
    assert (address.auto, address.port) == (True, None)
    chosen = address.with_port(4000)
    assert (chosen.key, chosen.auto, chosen.port) == ("[::1]:4000", False, 4000)


def test_a_unix_socket_has_no_port() -> None:
    with pytest.raises(AddressError):
        parse("unix:/a").with_port(1)


def test_a_relative_socket_is_taken_from_the_working_directory() -> None:
    assert parse("unix:a.sock").path == os.path.join(os.getcwd(), "a.sock")


def test_addresses_are_values() -> None:
    address = parse(":80")
    assert address == parse("*:80")
    assert address != parse(":81")
    assert address != ":80"  # type: ignore[comparison-overlap]
    assert len({address, parse("0.0.0.0:80")}) == 1
    assert (str(address), repr(address)) == ("0.0.0.0:80", "<Address 0.0.0.0:80>")
    for twin in (copy.deepcopy(address), pickle.loads(pickle.dumps(address))):
        assert (twin, twin.dual, type(twin)) == (address, True, Address)
    with pytest.raises(AttributeError):
        address.port = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("0.0.0.0:80", "localhost:80"),
        ("0.0.0.0:80", "web.example:80"),
        ("[::]:80", "0.0.0.0:80"),
        ("[::]:80", "10.0.0.1:80"),
        ("[::]:80", "[::1]:80"),
        (":80", "[::1]:80"),
        (":80", "[::]:80"),
        ("localhost:80", "127.0.0.1:80"),
        ("localhost:80", "[::1]:80"),
        ("[fe80::1%eth0]:80", "[fe80::1]:80"),
        ("unix:/a", "unix:/a"),
        ("fd:3", "fd:3"),
    ],
)
def test_overlapping_is_mutual(one: str, other: str) -> None:
    assert overlaps(parse(one), parse(other))
    assert overlaps(parse(other), parse(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1:80", "127.0.0.1:81"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("0.0.0.0:80", "[::1]:80"),
        ("localhost:80", "10.0.0.1:80"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth1]:80"),
        ("127.0.0.1:auto", "127.0.0.1:auto"),
        ("unix:/a", "unix:/b"),
        ("unix:/a", "fd:3"),
        ("job:a", "unix:/a"),
    ],
)
def test_addresses_that_get_along_do_not_overlap(one: str, other: str) -> None:
    assert not overlaps(parse(one), parse(other))
    assert not overlaps(parse(other), parse(one))


@pytest.mark.parametrize(
    ("text", "is_local"),
    [("127.0.0.1:1", True), ("127.8.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("unix:/run/a", True),
     (":1", False), ("10.0.0.1:1", False), ("[::]:1", False), ("127.example.com:1", False), ("fd:3", False)],
)  # fmt: skip
def test_only_this_machine_reaches_a_socket_and_the_loopback(text: str, is_local: bool) -> None:
    assert parse(text).is_local is is_local


class Held(NamedTuple):
    address: Address


def held(*addresses: str) -> dict[str, Held]:
    return {parse(each).key: Held(parse(each)) for each in addresses}


@pytest.mark.parametrize(
    ("address", "others", "found"),
    [
        ("127.0.0.1:80", ["0.0.0.0:80"], "0.0.0.0:80"),
        ("127.0.0.1:80", ["[::]:80"], "[::]:80"),
        ("127.0.0.1:80", ["localhost:80"], "localhost:80"),
        ("127.0.0.1:80", ["127.0.0.1:80", "0.0.0.0:81", "[::1]:80"], None),
        ("localhost:80", ["127.0.0.1:80"], "127.0.0.1:80"),
        ("localhost:80", ["[::1]:80"], "[::1]:80"),
        ("0.0.0.0:80", ["10.0.0.1:81", "10.0.0.1:80"], "10.0.0.1:80"),
        ("0.0.0.0:80", ["10.0.0.1:81"], None),
        ("10.0.0.1:80", ["10.0.0.2:80"], None),
        ("[fe80::1%lo]:80", ["[fe80::1]:80"], "[fe80::1]:80"),
        ("[fe80::1]:80", ["[fe80::1%lo]:80"], "[fe80::1%lo]:80"),
        ("[fe80::1%lo]:80", ["[fe80::2]:80"], None),
        ("unix:/a", ["unix:/b", "0.0.0.0:80"], None),
        ("127.0.0.1:auto", ["0.0.0.0:80"], None),
    ],
)
def test_address_that_overlaps_is_found_among_others(
    address: str, others: list[str], found: str | None
) -> None:
    items = held(*others)
    ports = Counter(item.address.port for item in items.values())
    found_item = find_overlapping_unequal(parse(address), items, ports)
    assert (None if found_item is None else found_item.address.key) == (found and parse(found).key)


@pytest.mark.parametrize(
    ("text", "wildcard", "local", "connect"),
    [
        ("0.0.0.0:80", True, False, "127.0.0.1:80"),
        ("[::]:80", True, False, "[::1]:80"),
        ("127.1.2.3:80", False, True, "127.1.2.3:80"),
        ("[::1]:80", False, True, "[::1]:80"),
        ("localhost:80", False, True, "localhost:80"),
        ("10.0.0.1:80", False, False, "10.0.0.1:80"),
        ("unix:/a", False, True, "unix:/a"),
    ],
)
def test_address_says_who_can_reach_it_and_where_this_machine_does(
    text: str, wildcard: bool, local: bool, connect: str
) -> None:
    address = parse(text)
    assert (address.is_wildcard, address.is_local, address.listens) == (wildcard, local, True)
    assert address.connect_address.key == parse(connect).key
    assert not Address("job", name="a").listens
