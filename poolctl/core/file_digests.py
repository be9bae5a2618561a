"""The files that servers read at their start: digests of their contents, and expiry of their certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from poolctl.config import ServerConfig, certificate_validity, read_regular


def digests(config: ServerConfig) -> dict[str, str]:
    """`{"env_file": …, "tls": …}` for the files that the server names; blocks on the disk.

    A file that has changed is a difference although no key has.
    """
    found: dict[str, str] = {}
    if config.env_file:
        found["env_file"] = _digest(config.env_file)
    tls = config.tls
    if tls and tls is not True:
        found["tls"] = _digest(filter(None, (tls.cert, tls.key or tls.cert, tls.ca)))
    return found


def certificate_ends(config: ServerConfig) -> float | None:
    """When the certificate that the server names expires, in seconds since the epoch; blocks on the disk.

    None without TLS, and for a file that cannot be read, or is none: opening a FIFO would wait for its writer.
    """
    if not config.tls or config.tls is True:
        return None
    try:
        times = certificate_validity(read_regular(config.tls.cert).decode("ascii", errors="replace"))
    except OSError:
        return None
    return None if times is None else times[1].timestamp()


def _digest(paths: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        try:
            digest.update(b"\1" + read_regular(path))
        except OSError:
            digest.update(b"\0")  # the worker that reads it reports what is wrong with it
    return digest.hexdigest()
