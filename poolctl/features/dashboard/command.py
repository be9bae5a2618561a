"""`poolctl dashboard`: prints a link to the page of the running pool."""

from __future__ import annotations

from urllib.parse import quote

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import Request, ask_for

from ._answers import DashboardLinkResult

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand)
@with_options
def dashboard(place: Place, output: Form = None) -> Outcome:
    """Print the link to the dashboard, token included.

    The token stands after `#`, which browsers do not send.
    """
    result = ask_for(DashboardLinkResult, Request("dashboard", place), find_pool(place))
    text = None
    if link := result.dashboard:
        web = link.url.startswith("http")
        token = quote(link.token, safe="")
        text = f"{link.url}#token={token}\n" if web else f"{link.url}\ntoken: {link.token}\n"
    return Outcome.of(result, text=text)
