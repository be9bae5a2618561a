"""Certificates of listeners: what one connection of a client does not give it for another host."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from poolctl.features.gateway.process.tls import ListenerCertificates
from tests.certificates import certificate

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
    former, renewed = certificates.context(BIND, "old.example"), certificates.context(BIND, "new.example")
    assert certificates.context(BIND) is former
    # A certificate that could not be used: every former one stays.
    certificates.keep(BIND, [["a.example", "unusable.example"], ["b.example"]])
    assert certificates.context(BIND, "old.example") is former
    certificates.keep(BIND, [["a.example", "new.example"], ["b.example"]])
    assert [certificates.context(BIND, name) for name in ("", "a.example", "old.example")] == [renewed] * 3
    assert certificates.context(BIND, "b.example") not in (renewed, former)
