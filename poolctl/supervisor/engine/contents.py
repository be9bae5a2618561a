"""What the files say that servers read at their start: a changed one is a difference although no key has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from poolctl.config.model import ServerConfig


def digests(config: ServerConfig) -> dict[str, str]:
    """`{"env_file": …, "tls": …}` for the files that the server names; blocks on the disk."""
    found: dict[str, str] = {}
    if config.env_file:
        found["env_file"] = _digest(config.env_file)
    tls = config.tls
    if tls and tls is not True:
        found["tls"] = _digest(filter(None, (tls.cert, tls.key or tls.cert, tls.ca)))
    return found


def _digest(paths: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest.update(b"\1" + file.read())
        except OSError:
            digest.update(b"\0")  # whoever needs it says what is wrong with it
    return digest.hexdigest()
