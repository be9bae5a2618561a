"""`poolctl unregister`: removes a registered service from its route."""

from __future__ import annotations

from typing import Annotated

import typer

from poolctl.cli import completion
from poolctl.cli.group import PoolCommand
from poolctl.cli.options import examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.render import printable
from poolctl.cli.supervisor_requests import Request
from poolctl.routing.route_report import with_absolute_socket_path

from .register import RegistrationForm, send_registration_request

app = typer.Typer(add_completion=False)


@app.command(cls=PoolCommand, epilog=examples("poolctl unregister users --to http://10.0.0.7:9000"))
@with_options
def unregister(
    place: Place,
    service: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The name under which it is registered.", autocompletion=completion.routes
        ),
    ],
    to: Annotated[
        str | None, typer.Option("--to", metavar="URL", help="Its URL. Default: every service of this name.")
    ] = None,
    output: RegistrationForm = None,
) -> Outcome:
    """Take out a service that has registered."""
    options = {"name": service, "to": with_absolute_socket_path(to or "")}
    return send_registration_request(
        Request("unregister", place, options=options),
        output,
        lambda entry: f"{printable(entry.name)}: {printable(entry.url)} is unregistered",
    )
