"""Upgrades a running pool to this version of poolctl, over its control socket."""

from __future__ import annotations

import sys
from typing import Any

from poolctl import __version__, bootstrap
from poolctl.control.client import Client
from poolctl.control.pool_exit import await_end
from poolctl.errors import ControlError
from poolctl.exit_codes import FAILED

_END_SECONDS = 30.0


def upgrade(client: Client) -> dict[str, Any]:
    """The supervisor's result, once its successor is of this version and answers; or its refusal.

    Keeper and supervisor are of this version then; the servers' processes keep running. Blocks. Raises
    NoSupervisor, and ControlError (1) when the pool goes on with another version.
    """
    result = client.call("upgrade", {"options": options_of_this_version()})
    if result.get("exit_code"):
        return result
    await_end(int(result["upgraded_from"]), _END_SECONDS)
    about = client.ping()  # it waits for the successor
    if about.get("version") != __version__ or about.get("supervisor_pid") == result["upgraded_from"]:
        raise ControlError(
            f"the pool still runs poolctl {about.get('version')}",
            exit_code=FAILED,
            hint="see supervisor.log in its runtime directory",
        )
    result["items"] = client.call("list")["items"]
    return result


def options_of_this_version() -> dict[str, Any]:
    """What another version has to know to hand over to this one."""
    return {
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "keeper": bootstrap.command(sys.executable, "keeper", isolated=True),
        "supervisor": bootstrap.command(sys.executable, "supervisor"),
    }
