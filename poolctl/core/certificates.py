"""Reports on workers that start while the certificate in their server's file has expired."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from .events import Event, Recorder
from .file_digests import certificate_ends
from .state import Entry, Worker

logger = logging.getLogger("poolctl.supervisor")


def passed_over(entry: Entry, expired: float) -> str:
    """The message that the server keeps using its previous certificate."""
    return (
        f"{_file(entry)}: the certificate expired on {day(expired)}; the one before stays in use: renew the file, "
        "then poolctl reload (--force uses the expired one)"
    )


def report_expired(recorder: Recorder, entry: Entry, worker: Worker, expired: float) -> None:
    """Record and log which certificate the worker uses, because the one in the file has expired."""
    if worker.passed_over is not None:
        event, message = "expired certificate not used", passed_over(entry, expired)
    else:
        event = "expired certificate in use"
        message = (
            f"{_file(entry)}: the certificate expired on {day(expired)}; renew the file, then poolctl reload"
        )
    logger.warning("%s: %s", entry.name, message)
    recorder.emit(
        Event(
            "config",
            event,
            server=entry.name,
            bind=entry.config.key,
            message=message,
            worker=worker.id,
            severity="warning",
        )
    )


def restore_certificate(entry: Entry, worker: Worker, now: float) -> None:
    """Restore that an adopted worker uses another certificate than the expired one of the file."""
    used = entry.certificate_ends
    if used is not None and used > now:
        ends = certificate_ends(entry.config)
        worker.certificate_ends, worker.passed_over = used, ends if ends is not None and ends <= now else None


def day(seconds: float) -> str:
    """The date of a time, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _file(entry: Entry) -> str:
    tls = entry.config.tls
    return tls.cert if tls and tls is not True else ""
