"""One module for each command; each has `perform(request)`, which returns an Outcome."""

from __future__ import annotations

from poolctl.cli import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.cli.outcome import Outcome
    from poolctl.cli.request import Request

# Of commands that stand in one file with others.
_MODULES = {
    "restart": "commands.start",
    "scale": "live_change",
    "drain": "live_change",
    "undrain": "live_change",
    "enable": "live_change",
    "disable": "live_change",
    "remove": "live_change",
    "hosts": "commands.routes",
}


def perform(request: Request) -> Outcome:
    """Do what the request says. Raises what outcome_of() understands."""
    from importlib import import_module

    output = request.output  # a form that does not exist is said before anything is done
    module = import_module("poolctl.cli." + _MODULES.get(request.verb, f"commands.{request.verb}"))
    interrupts.begin()
    outcome: Outcome = module.perform(request)
    outcome.form = output or outcome.form
    outcome.quiet = request.quiet
    return outcome
