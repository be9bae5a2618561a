"""Certificates: readable, belonging together, not out of date."""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from poolctl.config.checks.certificate_checks import (
    BEGIN,
    END,
    certificate_names,
    certificate_validity,
    check_certificates,
)
from poolctl.config.model.server_tables import TLSConfig
from tests.certificates import certificate

NOW = datetime.datetime.now(datetime.UTC)


def problems(tls: TLSConfig, env: dict[str, str] | None = None) -> list[tuple[str, str]]:
    found = [finding for finding in check_certificates(tls, env or {}, NOW) if not finding.is_warning]
    assert all(finding.hint for finding in found)
    return [(str(finding.path[1]), finding.message) for finding in found]


def warnings(tls: TLSConfig, now: datetime.datetime) -> str:
    warned = check_certificates(tls, {}, now)
    assert all(finding.is_warning for finding in warned)
    return "".join(finding.message for finding in warned)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    cert, key = certificate(tmp_path)
    return str(cert), str(key)


def encrypted(key: str) -> str:
    made = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    path = Path(key).with_suffix(".encrypted")
    path.write_bytes(
        made.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return str(path)


def test_certificate_with_its_own_key_has_no_problem(pair: tuple[str, str]) -> None:
    cert, key = pair
    assert problems(TLSConfig(cert=cert, key=key, ca=cert, client_auth="required", ciphers="HIGH")) == []


def test_one_file_may_hold_both(pair: tuple[str, str], tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(Path(pair[0]).read_text() + Path(pair[1]).read_text())
    assert problems(TLSConfig(cert=str(both))) == []


def test_every_missing_file_is_reported(tmp_path: Path) -> None:
    tls = TLSConfig(
        cert="/no/cert", key=str(tmp_path), ca="/no/ca", client_auth="required", password_env="NOPE"
    )
    assert [field for field, _ in problems(tls)] == ["cert", "key", "ca", "password_env"]
    found = check_certificates(tls, {}, NOW)
    assert found[0].hint == "check the path", "init writes no certificates"


def test_key_of_another_certificate_is_reported(pair: tuple[str, str], tmp_path: Path) -> None:
    _, other = certificate(tmp_path, "other")
    ((field, message),) = problems(TLSConfig(cert=pair[0], key=str(other)))
    assert field == "key"
    assert "do not belong together" in message


def test_file_without_a_certificate_or_key_is_reported(pair: tuple[str, str], tmp_path: Path) -> None:
    cert, key = pair
    (tmp_path / "text").write_text("hello")
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nxxxx\n-----END CERTIFICATE-----\n")
    assert "no certificate in it" in problems(TLSConfig(cert=key, key=key))[0][1]
    assert "no private key in it" in problems(TLSConfig(cert=cert))[0][1]
    assert "no private key in it" in problems(TLSConfig(cert=cert, key=str(tmp_path / "text")))[0][1]
    assert "cannot be used" in problems(TLSConfig(cert=str(tmp_path / "broken"), key=key))[0][1]
    assert "no certificates that can be used" in problems(TLSConfig(cert=cert, key=key, ca=key))[0][1]
    assert "selects no cipher" in problems(TLSConfig(cert=cert, key=key, ciphers="nonsense"))[0][1]


def test_an_encrypted_key_needs_its_password_and_never_the_terminal(pair: tuple[str, str]) -> None:
    cert, key = pair
    locked = encrypted(key)
    assert "is encrypted" in problems(TLSConfig(cert=cert, key=locked))[0][1]
    tls = TLSConfig(cert=cert, key=locked, password_env="PASSWORD")
    assert "is not set" in problems(tls)[0][1]
    assert "does not open the key" in problems(tls, {"PASSWORD": "wrong"})[0][1]
    assert "does not open the key" in problems(tls, {"PASSWORD": ""})[0][1]
    assert problems(tls, {"PASSWORD": "secret"}) == []


@pytest.mark.parametrize(
    ("days", "told"),
    [(0, ""), (20, "expires on"), (40, "certificate expired on"), (-2, "is not valid before")],
)
def test_the_time_of_a_certificate_is_worth_a_warning(pair: tuple[str, str], days: int, told: str) -> None:
    text = warnings(TLSConfig(cert=pair[0], key=pair[1]), NOW + datetime.timedelta(days=days))
    assert told in text
    assert bool(text) == bool(told)


def test_validity_is_read_as_the_certificate_says_it(pair: tuple[str, str]) -> None:
    from cryptography import x509

    text = Path(pair[0]).read_text()
    known = x509.load_pem_x509_certificate(text.encode())
    assert certificate_validity(text) == (known.not_valid_before_utc, known.not_valid_after_utc)
    for broken in ("", f"{BEGIN}\nMAMB\n{END}", f"{BEGIN}\n?\n"):
        assert certificate_validity(broken) is None


@pytest.mark.parametrize(("before", "days", "told"), [("25d", 6, True), ("1h", 29, False), (0, 29.99, False)])
def test_time_before_expiry_at_which_a_certificate_is_a_warning_is_configurable(
    pair: tuple[str, str], before: object, days: float, told: bool
) -> None:
    tls = TLSConfig(cert=pair[0], key=pair[1], warn_before=before)
    assert ("expires on" in warnings(tls, NOW + datetime.timedelta(days=days))) == told


def made(directory: Path, *extensions: x509.ExtensionType) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ignored.example")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(7).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    )  # fmt: skip
    for each in extensions:
        builder = builder.add_extension(each, critical=isinstance(each, x509.BasicConstraints))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_hosts_of_a_certificate_are_its_alternative_names(tmp_path: Path) -> None:
    names = x509.SubjectAlternativeName([
        x509.DNSName("Shop.Example"), x509.DNSName("*.shop.example"), x509.RFC822Name("a@b.example"),
        x509.IPAddress(ip_address("10.0.0.7")), x509.IPAddress(ip_address("::1")),
    ])  # fmt: skip
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    assert certificate_names(made(tmp_path, constraints, names)) == [
        "shop.example", "*.shop.example", "10.0.0.7", "[::1]",
    ]  # fmt: skip
    assert certificate_names(made(tmp_path, constraints)) == []
    assert certificate_names(made(tmp_path)) == []
    assert certificate_names("nonsense") == []
    broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    assert (certificate_names(broken), certificate_validity(broken)) == ([], None)
