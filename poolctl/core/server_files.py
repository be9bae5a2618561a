"""Digests of the files that servers read at their start, and the expiry of their certificates."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from poolctl.config import ServerConfig, certificate_validity, read_regular

from .server_entry import Entry


def digests(config: ServerConfig) -> dict[str, str]:
    """The digests of the files that the server names: `{"env_file": …, "tls": …}`. Blocks on the disk.

    A changed file counts as a difference although no key has changed.
    """
    found: dict[str, str] = {}
    if config.env_file:
        found["env_file"] = digest_of(config.env_file)
    tls = config.tls
    if tls and tls is not True:
        found["tls"] = digest_of(filter(None, (tls.cert, tls.key or tls.cert, tls.ca)))
    return found


def certificate_ends(config: ServerConfig) -> float | None:
    """The expiry time of the server's certificate, in seconds since the epoch. Blocks on the disk.

    None without TLS, and for a path that cannot be read or is not a regular file: opening a FIFO would wait for its
    writer.
    """
    if not config.tls or config.tls is True:
        return None
    try:
        times = certificate_validity(read_regular(config.tls.cert).decode("ascii", errors="replace"))
    except OSError:
        return None
    return None if times is None else times[1].timestamp()


def digest_of(paths: Iterable[str]) -> str:
    """A digest of the combined contents of these files. Blocks on the disk."""
    import hashlib  # with OpenSSL: most servers name no files

    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        try:
            digest.update(b"\1" + read_regular(path))
        except OSError:
            digest.update(b"\0")  # the worker that reads the file reports the error
    return digest.hexdigest()


def expired_message(entry: Entry, expired: float, *, passed_over: bool) -> str:
    """The message about an expired certificate; with `passed_over` the server keeps using its previous one."""
    tls = entry.config.tls
    file = tls.cert if tls and tls is not True else ""
    message = f"{file}: the certificate expired on {day(expired)}; "
    if not passed_over:
        return f"{message}renew the file, then poolctl reload"
    remedy = "renew the file, then poolctl reload (--allow-expired uses the expired one)"
    return f"{message}the one before stays in use: {remedy}"


def day(seconds: float) -> str:
    """The date of a time in seconds, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
