"""Whether the certificates of a server can be used: readable, belonging together, not out of date."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from datetime import datetime, timedelta

from poolctl.config.checks.validity import BEGIN, certificate_validity
from poolctl.config.files.read_file import read_text
from poolctl.config.model.problems import Finding, Problem
from poolctl.config.model.sections import TLSConfig


def check_certificates(
    tls: TLSConfig, env: Mapping[str, str], now: datetime
) -> tuple[list[Finding], list[Finding]]:
    """Problems and warnings of one TLS table. Blocks on the disk."""
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
    if problems:
        return problems, []
    problems += _pair(tls, texts, password) + _authorities(tls) + _ciphers(tls)
    return problems, [] if problems else _validity(tls, texts["cert"], now)


def _pair(tls: TLSConfig, texts: dict[str, str], password: str | None) -> list[Finding]:
    if BEGIN not in texts["cert"]:
        return [Finding(("tls", "cert"), f"{tls.cert}: no certificate in it", "name a PEM file", tls.cert)]
    key_field, key_path = ("key", tls.key) if tls.key else ("cert", tls.cert)
    key_text = texts[key_field]
    if "PRIVATE KEY-----" not in key_text:
        hint = "name the PEM file of the key: tls.key" if tls.key is None else "name a PEM file"
        return [Finding(("tls", key_field), f"{key_path}: no private key in it", hint, key_path or "")]
    encrypted = "ENCRYPTED" in key_text
    if encrypted and password is None:
        hint = "add password_env, the variable that holds the password"
        return [Finding(("tls", key_field), f"{key_path}: the key is encrypted", hint, key_path or "")]
    try:
        # Without a password given, OpenSSL would ask the terminal for one.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.cert, tls.key, password=lambda: password or "")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if "MISMATCH" in reason:
            message = f"{tls.cert} and {key_path} do not belong together"
            return [Finding(("tls", key_field), message, "name the key that the certificate was made for")]
        if encrypted:
            message = f"{key_path}: the password in {tls.password_env} does not open the key"
            return [
                Finding(("tls", "password_env"), message, f"set {tls.password_env} to the key's password")
            ]
        words = reason.lower().replace("_", " ")
        return [
            Finding(
                ("tls", "cert"), f"{tls.cert}: cannot be used: {words}", "name PEM files that openssl reads"
            )
        ]
    return []


def _authorities(tls: TLSConfig) -> list[Finding]:
    if tls.ca is None:
        return []
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(tls.ca)
    except (ssl.SSLError, OSError) as error:
        reason = (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
        return [
            Finding(("tls", "ca"), f"{tls.ca}: no certificates that can be used: {reason}", "name a PEM file")
        ]
    return []


def _ciphers(tls: TLSConfig) -> list[Finding]:
    if tls.ciphers is None:
        return []
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(tls.ciphers)
    except ssl.SSLError:
        hint = "`openssl ciphers` lists those that this machine knows"
        return [Finding(("tls", "ciphers"), f"{tls.ciphers!r} selects no cipher", hint, tls.ciphers)]
    return []


def _validity(tls: TLSConfig, text: str, now: datetime) -> list[Finding]:
    """An expired certificate is no reason not to start: a pool must come up after a night's power cut."""
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
    return [Finding(("tls", "cert"), f"{os.path.basename(tls.cert)}: {message}", "renew it", tls.cert)]
