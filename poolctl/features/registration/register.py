"""`poolctl register`: registers a service as a backend of a route, or sends its heartbeat."""

from __future__ import annotations

from collections.abc import Callable

from poolctl.cli.command_line import OUTPUT, Command, CommandRequest, Option
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import printable
from poolctl.cli.supervisor_requests import ask_for
from poolctl.json_form import Table, field_names
from poolctl.routing.route_report import SERVING, RegisteredServiceReport, with_absolute_socket_path

from ._answers import RegistrationChangeResult

COMMAND = Command(
    "Register a service as a backend of a route.",
    Option("service", "NAME", "The alias of the route.", required=True),
    Option("--to", "URL", "http://HOST:PORT, https://HOST:PORT or unix:PATH."),
    Option(
        "--ttl", "DURATION", 'How long it holds; register again as a heartbeat. Default: until "unregister".'
    ),
    Option("--weight", "N", "Its share of the traffic, from 1 to 1000. Default: 1."),
    Option("--host", "HOST", "Make a route of its own for this host."),
    Option("--path", "PATH", "Make a route of its own for paths below this one."),
    Option("--probe", "PATH", "Check its health with GET PATH; take it out of rotation while failing."),
    OUTPUT,
    section="Change",
    fields=tuple(field_names(RegisteredServiceReport)),
    examples=(
        "poolctl register users --to http://10.0.0.7:9000 --ttl 30s",
        "poolctl register docs --to http://10.0.0.8:90 --path /docs --probe /health",
    ),
    notes=("A route of the file accepts services with register = true.",),
)


def perform(request: CommandRequest) -> Outcome:
    """Register the service. Raises NoSupervisor."""
    if not request.get("to"):
        raise UsageError("register: the URL is missing", hint="poolctl register NAME --to http://HOST:PORT")
    given = {"ttl": request.seconds("ttl"), "weight": _weight(request.get("weight"))}
    options: Table = {
        "name": request.get("service"),
        "to": with_absolute_socket_path(request.get("to")),
        **given,
    }
    options |= {key: request.get(key) for key in ("host", "path", "probe")}
    return send_registration_request(request, options, _sentence)


def send_registration_request(
    request: CommandRequest, options: Table, sentence: Callable[[RegisteredServiceReport], str]
) -> Outcome:
    """Send the request to the supervisor; the output has a `sentence` for each service. Raises NoSupervisor."""
    result = ask_for(RegistrationChangeResult, request, find_pool(request), more=options)
    outcome = Outcome.of(result, "\n".join(map(sentence, result.items)))
    if request.output == "name":
        outcome.text = "".join(f"{printable(each.name)}\n" for each in result.items)
    return outcome


def _weight(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 1000):
        raise UsageError(f"--weight: {text!r} is not a number from 1 to 1000")
    return int(text)


def _sentence(service: RegisteredServiceReport) -> str:
    from poolctl.units import format_duration

    for_time = f" for {format_duration(service.ttl_seconds)}" if service.ttl_seconds else ""
    state = "" if service.state == SERVING else f" ({service.state})"
    return f"{printable(service.name)}: {printable(service.url)} is registered{for_time}{state}"
