"""The commands: one module each, which declares `COMMAND` and has `perform(request)`, which returns an Outcome.

A module here is a command; nothing else lists them.
"""

from __future__ import annotations

from poolctl.cli import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from poolctl.cli.command import Command
    from poolctl.cli.command_request import CommandRequest
    from poolctl.cli.outcome import Outcome


def names() -> list[str]:
    """Every command, by alphabet."""
    from pkgutil import iter_modules

    return sorted(module.name for module in iter_modules(__path__))


def command_named(verb: str) -> Command | None:
    """The declaration of a command; None when there is no such command."""
    module = _module(verb)
    return None if module is None else module.COMMAND


def perform(request: CommandRequest) -> Outcome:
    """Do what the request says. Raises what outcome_of() understands."""
    output = request.output  # a form that does not exist is reported before anything is done
    module = _module(request.verb)
    interrupts.begin()
    outcome: Outcome = module.perform(request)
    outcome.form = output or outcome.form
    outcome.quiet = request.quiet
    return outcome


def _module(verb: str) -> Any:
    if not verb.isidentifier():
        return None
    name = f"{__name__}.{verb}"
    try:
        return __import__(name, fromlist=["COMMAND"])  # importlib.import_module would import `warnings` too
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        return None
