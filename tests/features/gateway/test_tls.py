"""What a ClientHello tells, in however many segments and records it arrives."""

from __future__ import annotations

import random
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.features.gateway.process.tls import (
    MOST_BYTES,
    ClientHello,
    ListenerCertificates,
    NoClientHello,
    TlsReader,
    read_client_hello,
)
from tests.certificates import certificate


def client_hello(name: str | None = "users.example.com", protocols: tuple[str, ...] = ()) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """The same message in records of this size."""
    message = hello[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(hello[:3] + len(each).to_bytes(2, "big") + each for each in pieces)


@pytest.mark.parametrize(
    ("name", "protocols"),
    [("users.example.com", ()), ("a", ("h2", "http/1.1")), (None, ("h2",)), ("x" * 63 + ".example", ())],
)
def test_client_hello_tells_server_name_and_protocols(name: str | None, protocols: tuple[str, ...]) -> None:
    hello = client_hello(name, protocols)
    assert read_client_hello(hello) == ClientHello(name or "", protocols)
    assert read_client_hello(hello + b"early data") == ClientHello(name or "", protocols)


def test_server_name_is_compared_in_lower_case() -> None:
    hello = client_hello().replace(b"users.example.com", b"Users.EXAMPLE.com")
    assert read_client_hello(hello) == ClientHello("users.example.com")


@pytest.mark.parametrize("size", [7, 50, 511, 4096])
def test_client_hello_in_several_records_is_read_as_one(size: int) -> None:
    hello = in_records(client_hello(), max(size, len(client_hello()) // 60))
    for end in range(len(hello)):
        assert read_client_hello(hello[:end]) is None
    assert read_client_hello(hello) == ClientHello("users.example.com")


def test_client_hello_in_very_many_records_is_refused() -> None:
    with pytest.raises(NoClientHello):
        read_client_hello(in_records(client_hello(), 1))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",  # an alert
        b"\x16\x02\x01",
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # a record that is too long
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",  # nothing in it
        b"\x16\x03\x01\x00\x04\x01" + (MOST_BYTES + 1).to_bytes(3, "big"),
        b"\x17\x03\x03\x00\x20",  # application data
    ],
)
def test_other_bytes_are_refused_as_soon_as_they_are_seen(data: bytes) -> None:
    with pytest.raises(NoClientHello):
        read_client_hello(data)


@pytest.mark.slow
def test_name_that_is_no_host_name_is_refused() -> None:
    for bad in (
        b"users.example\0com",
        b"users example com",
        b".sers.example.com",
        b"users..xample.com",
        b"users.example.co.",
    ):
        with pytest.raises(NoClientHello):
            read_client_hello(client_hello().replace(b"users.example.com", bad))


def test_no_damaged_client_hello_raises_anything_else() -> None:
    chance = random.Random(4)
    hello = client_hello(protocols=("h2", "http/1.1"))
    read = 0
    for _ in range(3000):
        damaged = bytearray(hello)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        cut = bytes(damaged[: chance.choice((len(damaged), chance.randrange(len(damaged))))])
        try:
            read += read_client_hello(cut) is not None
        except NoClientHello:
            pass
    assert read > 100


BIND = ":443"


def session_of(
    certificates: ListenerCertificates,
    client: ssl.SSLContext,
    name: str,
    session: ssl.SSLSession | None = None,
    asked: str | None = None,
) -> ssl.SSLSession | None:
    """What the client could resume after a handshake for this name. Raises SSLError when the listener refuses it."""
    context = certificates.context(BIND, name if asked is None else asked)
    assert context is not None
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    ours = context.wrap_bio(to_server, to_client, server_side=True)
    open_sides = [theirs, ours]
    while open_sides:
        for side in [*open_sides]:
            try:
                side.do_handshake()
                open_sides.remove(side)
            except ssl.SSLWantReadError:
                pass
    ours.write(b"x")
    assert theirs.read(1) == b"x"  # with it the client reads tickets
    return theirs.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("default", ["open.example", "closed.example"])
@pytest.mark.parametrize("made_before", [False, True])
def test_client_certificate_is_demanded_by_the_host_that_is_asked_for(
    tmp_path: Path, version: ssl.TLSVersion, default: str, made_before: bool
) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    certificates = ListenerCertificates()
    made = {name: certificate(tmp_path, name) for name in ("open.example", "closed.example")}

    def put(name: str, *, demands: bool) -> None:
        contents = [path.read_bytes() for path in (*made[name], *made[name][:demands])]
        certificates.put(BIND, [name], {"client_auth": "required"} if demands else {}, contents)

    for name in sorted(made, key=lambda name: name != default):
        put(name, demands=name == "closed.example" and not made_before)
    session = session_of(certificates, client, "open.example")
    if made_before:
        put("closed.example", demands=True)
    session_of(certificates, client, "open.example", session)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        session_of(certificates, client, "closed.example", session)
    with pytest.raises(ssl.SSLError):
        session_of(certificates, client, "closed.example", asked="open.example")


def test_certificate_renewed_with_other_names_is_used_instead_of_the_one_before(tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in certificate(tmp_path)]
    certificates = ListenerCertificates()
    for names in (["a.example", "old.example"], ["b.example"], ["a.example", "new.example"]):
        certificates.put(BIND, names, {}, contents)
    previous, renewed = certificates.context(BIND, "old.example"), certificates.context(BIND, "new.example")
    assert certificates.context(BIND, "") is previous
    # A certificate that could not be used: every previous one stays.
    certificates.keep(BIND, [["a.example", "unusable.example"], ["b.example"]])
    assert certificates.context(BIND, "old.example") is previous
    certificates.keep(BIND, [["a.example", "new.example"], ["b.example"]])
    assert [certificates.context(BIND, name) for name in ("", "a.example", "old.example")] == [renewed] * 3
    assert certificates.context(BIND, "b.example") not in (renewed, previous)


def test_certificate_of_the_name_in_the_handshake_is_shown_even_if_it_began_with_another(
    tmp_path: Path,
) -> None:
    certificates = ListenerCertificates()
    for name in ("a.example", "b.example"):
        certificates.put(BIND, [name], {}, [path.read_bytes() for path in certificate(tmp_path, name)])
    client = ssl.create_default_context(cafile=str(tmp_path / "b.example.pem"))
    session_of(certificates, client, "b.example", asked="a.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        session_of(certificates, client, "a.example", asked="b.example")


def test_bytes_in_the_shared_buffer_reach_the_protocol_before_others_replace_them() -> None:
    received: list[bytes] = []
    protocol: Any = SimpleNamespace(data_received=received.append)
    shared = memoryview(bytearray(8))
    first, second = TlsReader(protocol, shared), TlsReader(protocol, shared)
    for reader, data in ((first, b"hello"), (second, b"you"), (first, b"")):
        reader.get_buffer(-1)[: len(data)] = data
        reader.buffer_updated(len(data))
    assert received == [b"hello", b"you", b""]
