"""What a ClientHello tells, in however many segments and records it arrives."""

from __future__ import annotations

import asyncio
import random
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.features.gateway.process.tls import (
    MOST_BYTES,
    CertificateContext,
    CertificatesByListener,
    ClientHello,
    NoClientHello,
    SharedBufferProtocol,
    read_client_hello,
)
from tests.certificates import certificate
from tests.descriptors import no_descriptor_left


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


def vector(content: bytes, length_bytes: int = 2) -> bytes:
    return len(content).to_bytes(length_bytes, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(content)


def hello_with(extensions: bytes | None) -> bytes:
    """A ClientHello with these extensions, or without any."""
    body = b"\3\3" + bytes(32) + vector(b"", 1) + vector(b"\x13\x01") + vector(b"\0", 1)
    body += b"" if extensions is None else extensions
    return b"\x16\3\1" + vector(b"\1" + vector(body, 3))


def named(name: bytes, kind: bytes = b"\0") -> bytes:
    return vector(extension(0, vector(kind + vector(name))))


LONGEST = b".".join([b"x" * 63] * 4)


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (None, ClientHello()),
        (vector(b""), ClientHello()),
        (named(b"a.example"), ClientHello("a.example")),
        (named(LONGEST), ClientHello(LONGEST.decode())),
        (vector(extension(16, vector(vector(b"h2", 1) + vector(b"x", 1)))), ClientHello("", ("h2", "x"))),
        (vector(extension(5, b"any") + extension(16, vector(vector(b"h2", 1)))), ClientHello("", ("h2",))),
    ],
)
def test_extensions_of_a_client_hello_are_read(extensions: bytes | None, expected: ClientHello) -> None:
    assert read_client_hello(hello_with(extensions)) == expected


@pytest.mark.parametrize(
    ("extensions", "problem"),
    [
        (b"\0", "wrong lengths"),
        (vector(b"") + b"x", "bytes behind the extensions"),
        (vector(b"\0\5\0"), "wrong lengths"),
        (vector(b"\0\5\0\1"), "wrong lengths"),
        (vector(extension(5, b"") * 2), "an extension twice"),
        (named(LONGEST + b"x"), "not a host name"),
        (named(b".".join([b"x"] * 128) + b"x"), "not a host name"),
        (named(b""), "not a host name"),
        (named(b"a", b"\1"), "a server name of another kind"),
        (vector(extension(0, vector(b"\0" + vector(b"a")) + b"x")), "a server name of another kind"),
        (vector(extension(0, vector(b"\0" + vector(b"a") + b"x"))), "not a host name"),
        (vector(extension(0, vector(b""))), "wrong lengths"),
        (vector(extension(16, vector(vector(b"h2", 1)) + b"x")), "a list of protocols with wrong lengths"),
        (vector(extension(16, vector(vector(b"", 1)))), "a list of protocols with wrong lengths"),
        (vector(extension(16, vector(b"\3h2"))), "a ClientHello with wrong lengths"),
    ],
)
def test_extensions_that_contradict_themselves_are_refused(extensions: bytes, problem: str) -> None:
    with pytest.raises(NoClientHello, match=problem):
        read_client_hello(hello_with(extensions))


def test_length_of_a_client_hello_has_three_bytes() -> None:
    hello = bytearray(client_hello())
    hello[6] = 1
    with pytest.raises(NoClientHello, match="a ClientHello that is too long"):
        read_client_hello(bytes(hello))


BIND = ":443"


def session_of(
    certificates: CertificatesByListener,
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
    certificates = CertificatesByListener()
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
    certificates = CertificatesByListener()
    for names in (["a.example", "old.example"], ["b.example"], ["a.example", "new.example"]):
        certificates.put(BIND, names, {}, contents)
    previous, renewed = certificates.context(BIND, "old.example"), certificates.context(BIND, "new.example")
    assert certificates.context(BIND, "") is previous
    # A certificate that could not be used: every previous one stays.
    certificates.retain_if_all_loaded(BIND, [["a.example", "unusable.example"], ["b.example"]])
    assert certificates.context(BIND, "old.example") is previous
    certificates.retain_if_all_loaded(BIND, [["a.example", "new.example"], ["b.example"]])
    assert [certificates.context(BIND, name) for name in ("", "a.example", "old.example")] == [renewed] * 3
    assert certificates.context(BIND, "b.example") not in (renewed, previous)


def test_certificate_of_the_name_in_the_handshake_is_shown_even_if_it_began_with_another(
    tmp_path: Path,
) -> None:
    certificates = CertificatesByListener()
    for name in ("a.example", "b.example"):
        certificates.put(BIND, [name], {}, [path.read_bytes() for path in certificate(tmp_path, name)])
    client = ssl.create_default_context(cafile=str(tmp_path / "b.example.pem"))
    session_of(certificates, client, "b.example", asked="a.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        session_of(certificates, client, "a.example", asked="b.example")


def test_bytes_in_the_shared_buffer_reach_the_protocol_before_others_replace_them() -> None:
    received: list[bytes] = []
    protocol: Any = SimpleNamespace(data_received=received.append)
    first, second = SharedBufferProtocol(protocol), SharedBufferProtocol(protocol)
    for reader, data in ((first, b"hello"), (second, b"you"), (first, b"")):
        reader.get_buffer(-1)[: len(data)] = data
        reader.buffer_updated(len(data))
    assert received == [b"hello", b"you", b""]


def test_protocol_behind_the_reader_gets_every_callback() -> None:
    calls: list[tuple[str, tuple[object, ...]]] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: calls.append((name, arguments)) or True

    recorder: Any = Recorder()
    transport, error = asyncio.Transport(), OSError()
    reader = SharedBufferProtocol(recorder)
    reader.connection_made(transport)
    reader.pause_writing()
    reader.resume_writing()
    assert reader.eof_received() is True
    reader.connection_lost(error)
    assert calls == [
        ("connection_made", (transport,)),
        ("pause_writing", ()),
        ("resume_writing", ()),
        ("eof_received", ()),
        ("connection_lost", (error,)),
    ]


def contents_of(directory: Path, *names: str) -> list[bytes]:
    """The certificate and key of the first name, and the certificates of the others, which are trusted."""
    first, *trusted = [certificate(directory, name) for name in names]
    return [path.read_bytes() for path in (*first, *(cert for cert, _ in trusted))]


def test_requests_for_a_host_that_demands_a_client_certificate_need_the_connection_of_that_host(
    tmp_path: Path,
) -> None:
    certificates, demand = CertificatesByListener(), {"client_auth": "required"}
    certificates.put(BIND, ["open.example"], {}, contents_of(tmp_path, "open.example"))
    certificates.put(
        BIND, ["Closed.example.", "10.0.0.1"], demand, contents_of(tmp_path, "closed.example", "ca.example")
    )
    of_open, of_closed = (certificates.context(BIND, name) for name in ("OPEN.example.", "closed.example"))
    assert isinstance(of_open, CertificateContext)
    assert isinstance(of_closed, CertificateContext)
    for host in (b"closed.example", b"closed.example:443", b"Closed.Example."):
        assert (of_open.allows_requests_for_host(host), of_closed.allows_requests_for_host(host)) == (
            False,
            True,
        )
    for host in (b"open.example:443", b"other.example", b"10.0.0.1", b"10.0.0.1:443", b"[::1]:443", b""):
        assert (of_open.allows_requests_for_host(host), of_closed.allows_requests_for_host(host)) == (
            True,
            True,
        )


def test_certificate_without_names_and_the_renewed_first_one_are_the_default(tmp_path: Path) -> None:
    contents, certificates = contents_of(tmp_path, "a.example"), CertificatesByListener()
    assert certificates.context(BIND, "a.example") is None
    certificates.retain_if_all_loaded(BIND, [["a.example"]])
    for names in (["a.example"], ["*.b.example"]):
        certificates.put(BIND, names, {}, contents)
    first, second = (certificates.context(BIND, name) for name in ("a.example", "x.b.example"))
    assert first is not second
    assert [certificates.context(BIND, name) for name in ("", "b.example", "x.x.b.example")] == [first] * 3
    certificates.put(BIND, ["A.example"], {}, contents)
    renewed = certificates.context(BIND, "a.example")
    assert renewed not in (first, second)
    assert certificates.context(BIND, "") is renewed
    certificates.put(BIND, [], {}, contents)
    assert certificates.context(BIND, "") not in (first, second, renewed)
    assert certificates.context(BIND, "a.example") is renewed


def test_settings_of_a_listener_reach_its_tls(tmp_path: Path) -> None:
    contents = contents_of(tmp_path, "a.example", "ca.example")

    def made(**tls: object) -> ssl.SSLContext:
        certificates = CertificatesByListener()
        certificates.put(BIND, (), tls, contents)
        context = certificates.context(BIND, "")
        assert context is not None
        return context

    usual = made()
    assert (usual.minimum_version, usual.verify_mode, usual.num_tickets) == (
        ssl.TLSVersion.TLSv1_2, ssl.CERT_NONE, 1,
    )  # fmt: skip
    assert made(min_version="1.3").minimum_version is ssl.TLSVersion.TLSv1_3
    assert made(client_auth="optional").verify_mode is ssl.CERT_OPTIONAL
    assert made(client_auth="required").verify_mode is ssl.CERT_REQUIRED
    suites = {each["name"] for each in made(ciphers="ECDHE-ECDSA-AES128-GCM-SHA256").get_ciphers()}
    assert {each for each in suites if not each.startswith("TLS_")} == {"ECDHE-ECDSA-AES128-GCM-SHA256"}


def test_client_certificate_has_to_be_of_an_authority_that_is_named(tmp_path: Path) -> None:
    certificates = CertificatesByListener()
    contents = contents_of(tmp_path, "closed.example", "client.example")
    certificates.put(BIND, (), {"client_auth": "required"}, contents)
    certificate(tmp_path, "other.example")

    def connect(name: str) -> None:
        client = ssl.create_default_context(cafile=str(tmp_path / "closed.example.pem"))
        client.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        session_of(certificates, client, "closed.example")

    connect("client.example")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        connect("other.example")


def test_certificate_that_cannot_be_used_leaves_the_previous_one_and_no_descriptor(tmp_path: Path) -> None:
    certificates, contents = CertificatesByListener(), contents_of(tmp_path, "a.example")
    other = contents_of(tmp_path, "b.example")
    with no_descriptor_left():
        certificates.put(BIND, (), {}, contents)
        previous = certificates.context(BIND, "")
        with pytest.raises(ssl.SSLError):
            certificates.put(BIND, (), {}, [contents[0], other[1]])
        assert certificates.context(BIND, "") is previous
