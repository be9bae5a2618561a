"""`poolctl dashboard`: where the page of the running pool is, and how to get in."""

from __future__ import annotations

from urllib.parse import quote

from poolctl.cli.command import INSPECT, OUTPUT, Command
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import ask

COMMAND = Command("Print the link to the dashboard, token included.", OUTPUT, section=INSPECT)


def perform(request: CommandRequest) -> Outcome:
    """A link that needs no login: what stands behind `#` is not sent to any server. Raises NoSupervisor."""
    outcome = ask(request, find_pool(request))
    found = outcome.extra.get("dashboard")
    if found:
        url, token = str(found["url"]), str(found["token"])
        web = url.startswith("http")
        outcome.text = f"{url}#token={quote(token, safe='')}\n" if web else f"{url}\ntoken: {token}\n"
    return outcome
