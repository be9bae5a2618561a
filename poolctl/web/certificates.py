"""The page's TLS certificate, reloaded when its files change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from poolctl.worker.serving.secure import renew_context, ssl_context

RENEWAL_SECONDS = 30.0

Tls = Mapping[str, Any]


def context_of(tls: Tls) -> ssl.SSLContext:
    """The TLS context of the files. Raises OSError for files that cannot be used."""
    with _opened(tls) as fds:
        return ssl_context(dict(tls), fds)


async def keep_current(
    context: ssl.SSLContext | None, tls: Tls, *, every_seconds: float = RENEWAL_SECONDS
) -> None:
    """Reload changed files into the context for new handshakes; they are checked every half minute.

    Files that do not fit each other, as while they are being replaced, are checked again.
    """
    assert context is not None
    known = _stamps(tls)
    while True:
        await asyncio.sleep(every_seconds)
        now = _stamps(tls)
        if now != known:
            with contextlib.suppress(OSError), _opened(tls) as fds:
                renew_context(context, dict(tls), fds)
                known = now


def _paths(tls: Tls) -> list[str]:
    return [path for path in (tls["cert"], tls["key"] or tls["cert"], tls["ca"]) if path]


def _stamps(tls: Tls) -> list[Any]:
    found: list[Any] = []
    for path in _paths(tls):
        try:
            status = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return found


@contextlib.contextmanager
def _opened(tls: Tls) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open(path, "rb")).fileno() for path in _paths(tls)]
