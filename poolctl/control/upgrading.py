"""Upgrades a running pool to this version of poolctl, over its control socket."""

from __future__ import annotations

import sys

from poolctl import __version__, bootstrap
from poolctl.control.answers import Result, UpgradeResult
from poolctl.control.client import Client
from poolctl.control.pool_exit import await_end
from poolctl.errors import ControlError
from poolctl.exit_codes import FAILED
from poolctl.values import Table

_END_SECONDS = 30.0


def upgrade(client: Client) -> Result:
    """The supervisor's result, once its successor is of this version and answers; or its refusal.

    Keeper and supervisor are of this version then; the servers' processes keep running. Blocks. Raises
    NoSupervisor, and ControlError (1) when the pool goes on with another version.
    """
    result = client.ask(UpgradeResult, "upgrade", {"options": options_of_this_version()})
    if result.exit_code or not result.upgraded_from:
        return result
    await_end(result.upgraded_from, _END_SECONDS)
    about = client.ping()  # it waits for the successor
    if about.version != __version__ or about.supervisor_pid == result.upgraded_from:
        raise ControlError(
            f"the pool still runs poolctl {about.version}",
            exit_code=FAILED,
            hint="see supervisor.log in its runtime directory",
        )
    return result.but(items=client.ask(Result, "list").items)


def options_of_this_version() -> Table:
    """What another version has to know to hand over to this one."""
    return {
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "keeper": bootstrap.command(sys.executable, "keeper", isolated=True),
        "supervisor": bootstrap.command(sys.executable, "supervisor"),
    }
