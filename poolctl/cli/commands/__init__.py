"""One module for each command; each has `perform(request)`, which returns an Outcome."""

from __future__ import annotations

from poolctl.cli import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.cli.outcome import Outcome
    from poolctl.cli.request import Request

# `list`, `filter` and the others are named as people type them; modules that Python has names for are not.
_MODULES = {
    "list": "listing",
    "filter": "filtering",
    "start": "lifecycle",
    "stop": "lifecycle",
    "restart": "lifecycle",
    "scale": "changing",
    "drain": "changing",
    "undrain": "changing",
    "enable": "changing",
    "disable": "changing",
    "remove": "changing",
    "add": "adding",
    "routes": "gateway",
    "hosts": "gateway",
}


def perform(request: Request) -> Outcome:
    """Do what the request says. Raises what outcome_of() understands."""
    from importlib import import_module

    output = request.output  # a form that does not exist is said before anything is done
    module = import_module(f"poolctl.cli.commands.{_MODULES.get(request.verb, request.verb)}")
    interrupts.begin()
    outcome: Outcome = module.perform(request)
    outcome.form = output or outcome.form
    outcome.quiet = request.quiet
    return outcome
