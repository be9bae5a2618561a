"""Certificates of servers: warnings about those that expire soon; expired ones must not replace valid ones."""

from __future__ import annotations

import os

from poolctl.config import ServerConfig
from poolctl.core.certificates import day, passed_over
from poolctl.core.file_digests import certificate_ends
from poolctl.core.state import Entry
from poolctl.errors import PoolRestartError, ServerError

_DAY_SECONDS = 86400.0


def expired(entry: Entry, config: ServerConfig, now: float) -> ServerError | None:
    """Why the server must not get the certificate of `config`: it has expired, and the one in use has not.

    Blocks on the disk.
    """
    if not entry.workers or entry.certificate_ends is None or entry.certificate_ends <= now:
        return None
    ends = certificate_ends(config)
    if ends is None or ends > now or not config.tls or config.tls is True:
        return None
    message = (
        f"{os.path.basename(config.tls.cert)}: the certificate expired on {day(ends)}, "
        f"and the one in use is valid until {day(entry.certificate_ends)}"
    )
    hint = "renew it; use --force to accept it"
    kind = PoolRestartError
    return ServerError(
        message, name=entry.name, bind=entry.config.key, hint=hint, code=kind.code, error=kind.error
    )


def expiring(entry: Entry, now: float) -> str:
    """The warning about the certificate in use; "" for one that is valid for longer than `tls.warn_before`."""
    ends, tls = entry.certificate_ends, entry.config.tls
    if not entry.workers or ends is None or not tls or tls is True:
        return ""
    expired_since = next((each.passed_over for each in entry.workers.values() if each.passed_over), None)
    if expired_since is not None and now < ends:
        return f"{entry.name}: {passed_over(entry, expired_since)}"
    if now + tls.warn_before <= ends:
        return ""
    if ends <= now:
        return f"{entry.name}: its certificate expired on {day(ends)}; renew it, then poolctl reload"
    days = int((ends - now) // _DAY_SECONDS)
    left = f"in {days} day{'' if days == 1 else 's'}" if days else "within a day"
    return f"{entry.name}: its certificate expires on {day(ends)} ({left}); renew it, then poolctl reload"
