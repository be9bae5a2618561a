"""What is true of every address."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from poolctl.address import AddressError, canonical, overlaps, parse

ports = st.integers(1, 65535)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6)
label = st.from_regex(r"[a-zA-Z]([a-zA-Z0-9-]{0,10}[a-zA-Z0-9])?", fullmatch=True)
hosts = st.one_of(
    ipv4,
    ipv6.map(lambda ip: f"[{ip}]"),
    ipv6.map(lambda ip: f"[{ip.exploded.upper()}]"),
    st.lists(label, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["", "*", "localhost", "0.0.0.0", "[::]", "127.0.0.1", "[::1]"]),
)
addresses = st.builds("{}{}:{}".format, st.sampled_from(["", "http://", "HTTPS://"]), hosts, ports)


@given(addresses)
def test_a_canonical_key_is_its_own_key(written: str) -> None:
    key = canonical(written)
    assert canonical(key) == key
    assert parse(written) == parse(key)


@given(ipv6, ports)
def test_ipv6_is_compressed_as_the_standard_library_does_it(ip: ipaddress.IPv6Address, port: int) -> None:
    mapped = ip.ipv4_mapped
    expected = f"{mapped}:{port}" if mapped else f"[{ip.compressed}]:{port}"
    assert canonical(f"[{ip.exploded}]:{port}") == expected


@given(addresses, addresses)
def test_overlapping_is_mutual_and_needs_one_port(one: str, other: str) -> None:
    a, b = parse(one), parse(other)
    assert overlaps(a, b) == overlaps(b, a)
    assert overlaps(a, a)
    if a.port != b.port:
        assert not overlaps(a, b)


@given(st.one_of(st.text(), st.text(alphabet="[]:.%0123456789abfx*@/- ", max_size=30)))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        address = parse(text, base_dir="/")
    except AddressError as error:
        told = bool(error.message and error.hint)
    else:
        told = canonical(address.key, base_dir="/") == address.key
    assert told
