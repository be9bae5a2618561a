"""`poolctl register`: registers a service as a backend of a route, or sends its heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from poolctl.cli import completion
from poolctl.cli.group import PoolCommand
from poolctl.cli.options import duration, examples, forms, with_options
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import printable
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.json_form import Table, field_names
from poolctl.routing.route_report import SERVING, RegisteredServiceReport, with_absolute_socket_path

from ._answers import RegistrationChangeResult

app = typer.Typer(add_completion=False)
RegistrationForm = Annotated[str | None, forms(fields=field_names(RegisteredServiceReport))]


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl register users --to http://10.0.0.7:9000 --ttl 30s",
        "poolctl register docs --to http://10.0.0.8:90 --path /docs --probe /health",
    ),
)
@with_options
def register(
    place: Place,
    service: Annotated[
        str, typer.Argument(metavar="NAME", help="The alias of the route.", autocompletion=completion.routes)
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="http://HOST:PORT, https://HOST:PORT or unix:PATH."),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            "--ttl",
            metavar="DURATION",
            parser=duration,
            help="How long it holds; register again as a heartbeat. Default: until unregister.",
        ),
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(
            "--weight", metavar="N", min=1, max=1000, help="Its share of the traffic, 1 to 1000. Default: 1."
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Make a route of its own for this host.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="PATH", help="Make a route of its own for paths below this one."),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe", metavar="PATH", help="Check its health with GET PATH; out of rotation while failing."
        ),
    ] = None,
    output: RegistrationForm = None,
) -> Outcome:
    """Register a service as a backend of a route.

    A route of the file accepts services with register = true.
    """
    if not to:
        raise UsageError("register: the URL is missing", hint="poolctl register NAME --to http://HOST:PORT")
    options: Table = {
        "name": service,
        "to": with_absolute_socket_path(to),
        "ttl": ttl,
        "weight": weight,
        "host": host,
        "path": path,
        "probe": probe,
    }
    return send_registration_request(Request("register", place, options=options), output, _sentence)


def send_registration_request(
    request: Request, output: str | None, sentence: Callable[[RegisteredServiceReport], str]
) -> Outcome:
    """Send the request to the supervisor; the output has a `sentence` for each service. Raises NoSupervisor."""
    result = ask_for(RegistrationChangeResult, request, find_pool(request.place))
    outcome = Outcome.of(result, "\n".join(map(sentence, result.items)))
    if output == "name":
        outcome.text = "".join(f"{printable(item.name)}\n" for item in result.items)
    return outcome


def _sentence(service: RegisteredServiceReport) -> str:
    from poolctl.units import format_duration

    for_time = f" for {format_duration(service.ttl_seconds)}" if service.ttl_seconds else ""
    state = "" if service.state == SERVING else f" ({service.state})"
    return f"{printable(service.name)}: {printable(service.url)} is registered{for_time}{state}"
