"""Sends a test notification to each receiver of a pool, for `poolctl doctor --notify`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.config import directory_of
from poolctl.control.client import NoSupervisor

from ._send import NotifyResult

if TYPE_CHECKING:
    from poolctl.cli.place import Place
    from poolctl.cli.pool_ref import PoolRef


def send_test_notifications(place: Place, pool: PoolRef) -> NotifyResult:
    """Ask the supervisor to send test notifications; if none runs, send them with this command's environment."""
    try:
        return ask_for(NotifyResult, Request("notify", place), pool)
    except NoSupervisor:
        return _send_without_supervisor(pool)


def _send_without_supervisor(pool: PoolRef) -> NotifyResult:
    import asyncio

    from poolctl.cli.offline import load

    from ._problem_tracker import NotificationContext
    from ._send import send_test
    from .table import Notify

    config = load(pool, allow_empty=True)
    directory = directory_of(pool.files[0])
    facts = NotificationContext(config.settings.name or os.path.basename(directory), os.environ, directory)
    return asyncio.run(send_test(config.tables.all(Notify), (), facts))
