"""`poolctl dashboard`: prints a link to the page of the running pool."""

from __future__ import annotations

from urllib.parse import quote

from poolctl.cli.command_line import OUTPUT, Command, CommandRequest
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import ask_for

from ._answers import DashboardLinkResult

COMMAND = Command("Print the link to the dashboard, token included.", OUTPUT, section="Look")


def perform(request: CommandRequest) -> Outcome:
    """Print the dashboard's link with the login token after `#`, which browsers do not send. Raises NoSupervisor."""
    result = ask_for(DashboardLinkResult, request, find_pool(request))
    text = None
    if link := result.dashboard:
        web = link.url.startswith("http")
        token = quote(link.token, safe="")
        text = f"{link.url}#token={token}\n" if web else f"{link.url}\ntoken: {link.token}\n"
    return Outcome.of(result, text=text)
