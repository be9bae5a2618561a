"""`poolctl start`, `stop` and `restart`."""

from __future__ import annotations

from poolctl.cli.counting import servers
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import find_place
from poolctl.cli.remote import ask, ask_or_launch
from poolctl.control.client import NoSupervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.cli.place import Place
    from poolctl.cli.request import Request

# What is as it should be without being ready.
_ASIDE = ("sleeping", "disabled")


def perform(request: Request) -> Outcome:
    """Start, stop or restart the selected servers; returns when each is there, or with why it is not."""
    place = find_place(request)
    if request.verb == "stop":
        return _stop(request, place)
    outcome = ask_or_launch(request, place)
    outcome.message = _ready_line(outcome, waited=not request.get("no_wait"))
    return outcome


def _stop(request: Request, place: Place) -> Outcome:
    try:
        outcome = ask(request, place)
    except NoSupervisor:
        from poolctl.cli.survivors import stop

        if ended := stop(request, place):
            return ended
        items = []
        if not request.selector().selects_all:
            from poolctl.cli.local import select_from_files

            items = select_from_files(request, place)
        return Outcome(items, message="nothing is running")
    stopped = [item for item in outcome.items if item.get("state") in ("stopped", "disabled", "failed")]
    if request.get("no_wait"):
        outcome.message = f"{servers(len(outcome.items))} told to stop"
    else:
        outcome.message = f"{servers(len(stopped), len(outcome.items))} stopped"
    return outcome


def _ready_line(outcome: Outcome, *, waited: bool) -> str:
    if not outcome.items:
        return "" if outcome.exit_code else "no server selected"
    asides = {state: sum(item.get("state") == state for item in outcome.items) for state in _ASIDE}
    ready = sum(bool(item.get("ready")) for item in outcome.items)
    count = len(outcome.items) - sum(asides.values())
    line = f"{servers(ready, count)} ready"
    if not waited:
        line = f"{servers(count)} told to start, {ready} ready"
    said = ", ".join(f"{number} {state}" for state, number in asides.items() if number)
    return f"{line} ({said})" if said else line
