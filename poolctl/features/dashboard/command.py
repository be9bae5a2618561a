"""`poolctl dashboard`: prints a link to the page of the running pool."""

from __future__ import annotations

import time

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.supervisor_requests import Request, ask_for

from ._answers import DashboardLinkResult
from ._signed_ids import new_login_code

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand)
@with_options
def dashboard(place: Place, output: Form = None) -> Outcome:
    """Print a link that logs one browser in to the dashboard.

    The code after `#` is for one use within ten minutes. -o json prints the token, for scripts.
    """
    result = ask_for(DashboardLinkResult, Request("dashboard", place), find_pool(place))
    text = None
    if link := result.dashboard:
        web = link.url.startswith("http")
        code = new_login_code(link.token, time.time())
        text = f"{link.url}#token={code}\n" if web else f"{link.url}\ntoken: {link.token}\n"
    return Outcome.of(result, text=text)
