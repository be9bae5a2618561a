"""Tokens at the supervisor's own addresses: who sent a request, and how often an address may guess."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.web.bearer_tokens import (
    MAX_ADDRESSES,
    MAX_WRONG_TOKENS,
    WRONG_TOKEN_SECONDS,
    Peer,
    Refused,
    Token,
    TokenCheck,
    bearer_token,
    peer_of,
)

LONG = "0123456789abcdef0123456789abcdef"
TOKENS = {
    Token("one"): "web",
    Token("other"): "far",
    Token(LONG): "long",
    Token("ä" + LONG[2:]): "31 characters",
}
HERE, THERE = Peer(ip_address("127.0.0.1"), "127.0.0.1"), Peer(ip_address("10.0.0.9"), "10.0.0.9")


def asked(check: TokenCheck, authorization: str, peer: Peer = HERE, now: float = 0.0) -> Any:
    """The name of the token, or the status and the fields with which the request is refused."""
    try:
        return TOKENS[check.accepted(bearer_token(authorization), TOKENS, peer.key, now)]
    except Refused as refused:
        return refused.status, refused.fields


UNKNOWN = 401, {"www_authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("authorization", "found"),
    [
        ("Bearer one", "web"), ("bearer  other ", "far"), ("Bearer", UNKNOWN), ("Bearer ", UNKNOWN), ("", UNKNOWN),
        (f"Bearer {LONG}", "long"), (f"Bearer \xc3\xa4{LONG[2:]}", "31 characters"),
        ("Bearer on", UNKNOWN), ("Basic one", UNKNOWN), ("one", UNKNOWN),
    ],
)  # fmt: skip
def test_a_client_is_known_by_its_token(authorization: str, found: object) -> None:
    assert asked(TokenCheck(), authorization) == found


def test_after_ten_wrong_tokens_an_address_waits_before_each_other_one() -> None:
    check = TokenCheck()
    assert [asked(check, "Bearer guess") for _ in range(MAX_WRONG_TOKENS)] == [UNKNOWN] * MAX_WRONG_TOKENS
    late = 429, {"retry_after": "7"}
    assert asked(check, "Bearer guess") == late
    assert asked(check, "Bearer one") == late, "an answer would tell which guess is right"
    assert asked(check, "Bearer one", THERE) == "web"
    later = WRONG_TOKEN_SECONDS + 0.1
    assert asked(check, "Bearer guess", now=later) == UNKNOWN
    assert asked(check, "Bearer one", now=later) == (429, {"retry_after": "6"})
    assert asked(check, "Bearer one", now=2 * later) == "web"


def test_a_right_token_of_32_characters_waits_for_no_wrong_one() -> None:
    check = TokenCheck()
    for _ in range(3 * MAX_WRONG_TOKENS):
        asked(check, "Bearer guess")
        assert asked(check, f"Bearer {LONG}") == "long"
    late = 429, {"retry_after": "7"}
    assert asked(check, f"Bearer {LONG}x") == asked(check, f"Bearer {LONG[:-1]}") == late
    assert asked(check, f"Bearer \xc3\xa4{LONG[2:]}") == late, "its characters count, not its bytes"
    assert asked(check, "Bearer one") == late, "a right one of all does not end the wait of the others"


def test_what_is_known_of_addresses_with_wrong_tokens_is_bounded() -> None:
    check = TokenCheck()
    for _ in range(MAX_WRONG_TOKENS):
        asked(check, "Bearer guess")
    assert asked(check, "Bearer guess")[0] == 429
    others = [THERE._replace(key=str(number)) for number in range(MAX_ADDRESSES)]
    for other in others[:-1]:
        assert asked(check, "Bearer guess", other) == UNKNOWN
    assert asked(check, "Bearer guess")[0] == 429
    asked(check, "Bearer guess", others[-1])
    assert asked(check, "Bearer guess") == UNKNOWN, "it is forgotten, and the others are not"
    assert [asked(check, "Bearer guess", others[-1])[0] for _ in range(MAX_WRONG_TOKENS)][-2:] == [401, 429]


class Transport:
    """A connection with these facts."""

    def __init__(self, **facts: Any) -> None:
        self._facts = facts

    def get_extra_info(self, name: str) -> Any:
        return self._facts.get(name)


def peer_with(**facts: Any) -> Peer | None:
    transport: Any = Transport(**facts)
    return peer_of(transport)


def test_peer_is_its_address_or_its_user() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_with(socket=ours)
    assert peer is not None
    assert (peer, peer.is_local) == (Peer(None, f"uid {os.getuid()}"), True)
    fields: dict[str, tuple[str, ...]] = {"10.0.0.9": ("10.0.0.9", "10.0.0.9")}
    fields["::ffff:10.0.0.9"] = ("10.0.0.9", "10.0.0.9")
    fields["fd00::1:2:3:4%eth0"] = ("fd00::1:2:3:4", "fd00::/64")
    with socket.socket() as sock:
        for name, (ip, key) in fields.items():
            peer = peer_with(socket=sock, peername=(name, 1))
            assert peer == Peer(ip_address(ip), key)
            assert not peer.is_local
        for mapped in ("127.9.9.9", "::1", "::ffff:127.0.0.1"):
            peer = peer_with(socket=sock, peername=(mapped, 1))
            assert peer is not None
            assert peer.is_local
        assert peer_with(socket=sock) is None, "it has left"


def test_peer_is_certified_by_the_certificate_that_it_has_presented() -> None:
    with socket.socket() as sock:
        for presented in ({}, {"subject": ()}):
            tls = SimpleNamespace(getpeercert=lambda presented=presented: presented)
            peer = peer_with(socket=sock, peername=("10.0.0.9", 1), ssl_object=tls)
            assert peer is not None
            assert peer.certified is bool(presented)
