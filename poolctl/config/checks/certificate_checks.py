"""Checks that the certificates of a server are usable: readable, matching their key, and not expired.

Only these checks load OpenSSL. The supervisor reads expiry times without it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from poolctl.config.files.read_file import read_text
from poolctl.config.model.server_tables import TLSConfig
from poolctl.config.values.problems import Finding, Problem

BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def check_certificates(tls: TLSConfig, env: Mapping[str, str], now: datetime) -> list[Finding]:
    """The findings of one TLS table; `env` has the password of the key. Blocks on the disk."""
    texts: dict[str, str] = {}
    problems: list[Finding] = []
    for field, path in (("cert", tls.cert), ("key", tls.key), ("ca", tls.ca)):
        if path is None:
            continue
        try:
            texts[field] = read_text(path)
        except Problem as problem:
            problems.append(Finding(("tls", field), f"{path}: {problem.message}", problem.hint, path))
    password = env.get(tls.password_env) if tls.password_env else None
    if tls.password_env and password is None:
        hint = f"export {tls.password_env}=…"
        message = f"the environment variable {tls.password_env} is not set"
        problems.append(Finding(("tls", "password_env"), message, hint))
    if not problems:
        problems += [*_check_key_pair(tls, texts, password), *_check_ca_and_ciphers(tls)]
    return problems or _expiry_warnings(tls, texts["cert"], now)


def _check_key_pair(tls: TLSConfig, texts: dict[str, str], password: str | None) -> list[Finding]:
    import ssl

    if BEGIN not in texts["cert"]:
        return [Finding(("tls", "cert"), f"{tls.cert}: no certificate in it", "name a PEM file", tls.cert)]
    field, path = ("key", tls.key) if tls.key else ("cert", tls.cert)
    if "PRIVATE KEY-----" not in texts[field]:
        hint = "name the PEM file of the key: tls.key" if tls.key is None else "name a PEM file"
        return [Finding(("tls", field), f"{path}: no private key in it", hint, path)]
    encrypted = "ENCRYPTED" in texts[field]
    if encrypted and password is None:
        hint = "add password_env, the variable that holds the password"
        return [Finding(("tls", field), f"{path}: the key is encrypted", hint, path)]
    try:
        # With a password callback, OpenSSL does not prompt on the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert, tls.key, password=lambda: password or "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = openssl_reason(error)
        if "its key" in reason:
            message = f"{tls.cert} and {path} do not belong together"
            return [Finding(("tls", field), message, "name the key that the certificate was made for")]
        if encrypted:
            message = f"{path}: the password in {tls.password_env} does not open the key"
            hint = f"set {tls.password_env} to the key's password"
            return [Finding(("tls", "password_env"), message, hint)]
        message = f"{tls.cert}: cannot be used: {reason}"
        return [Finding(("tls", "cert"), message, "name PEM files that openssl reads")]
    return []


def _check_ca_and_ciphers(tls: TLSConfig) -> Iterator[Finding]:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if tls.ca is not None:
        try:
            context.load_verify_locations(tls.ca)
        except (ssl.SSLError, OSError) as error:
            message = f"{tls.ca}: no certificates that can be used: {openssl_reason(error)}"
            yield Finding(("tls", "ca"), message, "name a PEM file")
    if tls.ciphers is not None:
        try:
            context.set_ciphers(tls.ciphers)
        except ssl.SSLError:
            hint = "`openssl ciphers` lists those that this machine knows"
            yield Finding(("tls", "ciphers"), f"{tls.ciphers!r} selects no cipher", hint, tls.ciphers)


def openssl_reason(error: Exception) -> str:
    """Return OpenSSL's reason for rejecting a certificate or key, in words."""
    reason = (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
    return "its key belongs to another certificate" if "mismatch" in reason else reason


def _expiry_warnings(tls: TLSConfig, text: str, now: datetime) -> list[Finding]:
    """A warning if the certificate has expired, is not valid yet, or expires within `tls.warn_before` seconds; else [].

    Expiry is never an error: a pool must be able to start again, for example after a power failure.
    """
    times = certificate_validity(text)
    if times is None:
        return []
    begins, ends = times
    if now > ends:
        message = f"the certificate expired on {ends:%Y-%m-%d}"
    elif now < begins:
        message = f"the certificate is not valid before {begins:%Y-%m-%d}"
    elif now + timedelta(seconds=tls.warn_before) > ends:
        message = f"the certificate expires on {ends:%Y-%m-%d}"
    else:
        return []
    text = f"{os.path.basename(tls.cert)}: {message}"
    return [Finding(("tls", "cert"), text, "renew it", tls.cert, is_warning=True)]


def certificate_validity(text: str) -> tuple[datetime, datetime] | None:
    """Start and end of the validity of the first certificate in a PEM file; None if it cannot be read.

    The first certificate of a chain is the server's own.
    """
    try:
        # RFC 5280 §4.1: [version], serial, algorithm, issuer, validity.
        fields = _certificate_fields(text)
        _, times = fields[4 if fields[0][0] == 0xA0 else 3]
        begins, ends = _elements(times)
        return _parse_time(*begins), _parse_time(*ends)
    except (ValueError, IndexError):
        return None


# RFC 5280 §4.2.1.6: subjectAltName is 2.5.29.17; only DNS names and IP addresses are hosts.
_SUBJECT_ALT_NAME = b"\x55\x1d\x11"
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87


def certificate_names(text: str) -> list[str]:
    """The host names of the first certificate in the text of a PEM file, including wildcards and IP addresses.

    IPv6 addresses are in brackets. Empty if the certificate has no names or cannot be read.
    """
    from ipaddress import ip_address

    names: list[str] = []
    try:
        for _, extension in [
            element
            for tag, content in _certificate_fields(text)
            if tag == 0xA3
            for element in _nested_elements(content)
        ]:
            # An identifier, an optional flag, and a value.
            parts = list(_elements(extension))
            for tag, content in _nested_elements(parts[-1][1]) if parts[0][1] == _SUBJECT_ALT_NAME else ():
                if tag == _DNS_NAME:
                    names.append(content.decode("ascii").lower())
                elif tag == _IP_ADDRESS:
                    address = ip_address(content)
                    names.append(f"[{address}]" if address.version == 6 else str(address))
    except (ValueError, IndexError):
        return []
    return names


def _certificate_fields(text: str) -> list[tuple[int, bytes]]:
    """Tag and content of each field of the first certificate in a PEM file (tbsCertificate in RFC 5280)."""
    der = base64.b64decode(text.partition(BEGIN)[2].partition(END)[0])
    return list(_elements(_nested_elements(der)[0][1]))


def _nested_elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element inside the first DER element of the data."""
    (_, content), *_ = _elements(data)
    return list(_elements(content))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each DER element in a sequence of elements (X.690 §8.1)."""
    position = 0
    while position < len(data):
        tag, length = data[position], data[position + 1]
        position += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[position : position + count], "big")
            position += count
        yield tag, data[position : position + length]
        position += length


def names_cover(names: Iterable[str], host: str) -> bool:
    """Whether clients accept a certificate with these names for a host.

    In a name, "*" stands for exactly one label, the first (RFC 6125 §6.4.3). A wildcard host such as `*.example.com` is
    covered only by the same name.
    """
    _, _, domain = host.partition(".")
    return any(name == host or (domain and name == f"*.{domain}") for name in names)


def _parse_time(tag: int, content: bytes) -> datetime:
    pattern = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return datetime.strptime(content.decode("ascii"), pattern).replace(tzinfo=UTC)
