"""What a process reports of a client to the application behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.http.client_report import ForwardedHeaders, is_client_field

NOT_A_HOST = b'a.test";for=1.1.1.1'


def report(peer: str = "192.0.2.1", scheme: str = "http", *, trusted: bool = False) -> ForwardedHeaders:
    return ForwardedHeaders(peer, scheme, trusted=trusted)


@pytest.mark.parametrize("trusted", [False, True])
def test_host_that_is_none_cannot_add_to_forwarded(trusted: bool) -> None:
    found = dict(report(trusted=trusted).with_forwarded_fields([(b"host", b"a.test")]))
    assert found[b"forwarded"] == b'for=192.0.2.1;proto=http;host="a.test"'
    found = dict(report(trusted=trusted).with_forwarded_fields([(b"host", NOT_A_HOST)]))
    assert found[b"forwarded"] == b"for=192.0.2.1;proto=http"
    assert b"x-forwarded-host" not in found


@pytest.mark.parametrize(
    ("peer", "element", "hops"),
    [
        ("192.0.2.1", b"for=192.0.2.1;proto=https", [b"192.0.2.1"]),
        ("2001:db8::1", b'for="[2001:db8::1]";proto=https', [b"2001:db8::1"]),
        ("", b"for=unknown;proto=https", []),
    ],
)
def test_peers_of_every_kind_are_reported(peer: str, element: bytes, hops: list[bytes]) -> None:
    found = report(peer, "https").with_forwarded_fields([])
    assert found[-1] == (b"forwarded", element)
    assert [value for name, value in found if name == b"x-forwarded-for"] == hops


@pytest.mark.parametrize(
    ("headers", "reported"),
    [
        (
            [(b"host", b"a.test"), (b"accept", b"*/*")],
            {
                b"x-forwarded-for": b"192.0.2.1",
                b"x-forwarded-proto": b"http",
                b"x-forwarded-host": b"a.test",
                b"forwarded": b'for=192.0.2.1;proto=http;host="a.test"',
            },
        ),
        (
            [
                (b"host", b"a.test"), (b"x-forwarded-for", b" 1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2"),
                (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"b.test\t"), (b"x-real-ip", b"3.3.3.3"),
                (b"forwarded", b"for=1.1.1.1"), (b"accept", b"*/*"),
            ],
            {
                b"x-forwarded-for": b"1.1.1.1, 2.2.2.2, 192.0.2.1",
                b"x-forwarded-proto": b"https",
                b"x-forwarded-host": b"b.test",
                b"forwarded": b'for=1.1.1.1, for=192.0.2.1;proto=http;host="a.test"',
            },
        ),
    ],
)  # fmt: skip
def test_trusted_report_is_extended_and_missing_fields_are_added(
    headers: list[tuple[bytes, bytes]], reported: dict[bytes, bytes]
) -> None:
    found = report(trusted=True).with_forwarded_fields(headers)
    assert found[:2] == [(b"host", b"a.test"), (b"accept", b"*/*")]
    assert dict(found[2:]) == reported
    untrusted = report().with_forwarded_fields(headers)
    assert dict(untrusted[2:])[b"x-forwarded-for"] == b"192.0.2.1"


def test_trusted_client_of_a_unix_socket_adds_no_hop() -> None:
    headers = [(b"host", b"a.test"), (b"x-forwarded-for", b"1.1.1.1")]
    assert dict(report("", trusted=True).with_forwarded_fields(headers))[b"x-forwarded-for"] == b"1.1.1.1"


def test_report_of_one_request_is_no_part_of_the_next() -> None:
    client = report()
    first = client.with_forwarded_fields([(b"host", b"a.test")])
    first.append((b"x", b"y"))
    assert (b"x", b"y") not in client.with_forwarded_fields([(b"host", b"a.test")])


@given(st.lists(st.sampled_from("xX-_forwardedFORWARDEDrealpoctl~.1")).map("".join), st.booleans())
def test_names_that_cgi_cannot_tell_apart_are_judged_alike(end: str, upper: bool) -> None:
    for beginning in ("", "x-forwarded-", "x-real-ip", "x-poolctl-", "forwarded"):
        name = beginning + end
        name = name.upper() if upper else name
        alike = (name, name.replace("-", "_"), name.lower())
        verdicts = {is_client_field(each.encode()) is None for each in alike}
        assert len(verdicts) == 1
