"""`poolctl unregister`: removes a registered service from its route."""

from __future__ import annotations

from poolctl.cli.command_line import OUTPUT, Command, CommandRequest, Option
from poolctl.cli.outcome import Outcome
from poolctl.cli.render import printable
from poolctl.json_form import field_names
from poolctl.routing.route_report import RegisteredServiceReport, with_absolute_socket_path

from .register import send_registration_request

COMMAND = Command(
    "Take out a service that has registered.",
    Option("service", "NAME", "The name under which it is registered.", required=True),
    Option("--to", "URL", "Its URL. Default: every service of this name."),
    OUTPUT,
    section="Change",
    fields=tuple(field_names(RegisteredServiceReport)),
    examples=("poolctl unregister users --to http://10.0.0.7:9000",),
)


def perform(request: CommandRequest) -> Outcome:
    """Unregister the service. Raises NoSupervisor."""
    options = {"name": request.get("service"), "to": with_absolute_socket_path(request.get("to") or "")}
    return send_registration_request(
        request, options, lambda each: f"{printable(each.name)}: {printable(each.url)} is unregistered"
    )
