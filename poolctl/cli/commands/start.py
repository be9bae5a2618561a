"""`poolctl start` and `poolctl restart`."""

from __future__ import annotations

import os

from poolctl.cli.outcome import Outcome
from poolctl.cli.plural import servers
from poolctl.cli.pool_ref import find_place
from poolctl.cli.remote import ask_or_launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.cli.pool_ref import Place
    from poolctl.cli.request import Request

# What is as it should be without being ready.
_ASIDE = ("sleeping", "draining", "disabled")


def perform(request: Request) -> Outcome:
    """Start, stop or restart the selected servers; returns when each is there, or with why it is not."""
    place = find_place(request)
    outcome = ask_or_launch(request, place)
    if os.environ.get("NOTIFY_SOCKET") and not outcome.ended_pid:
        _hand_over(place, ready=not outcome.exit_code)
    if request.verb == "restart" and outcome.errors:
        outcome.message = _restarted_line(outcome)
    else:
        outcome.message = _ready_line(outcome, waited=not request.get("no_wait"))
    return outcome


def _hand_over(place: Place, *, ready: bool) -> None:
    """As a service's main process, tell systemd which process is that from now on: the keeper, whom it can stop."""
    from poolctl.control import systemd
    from poolctl.control.client import Client
    from poolctl.errors import ControlError

    if systemd.is_main(os.environ):
        try:
            keeper = Client(place.socket).ping().get("keeper_pid")
        except ControlError:
            return  # it has ended already, and so does the service
        systemd.tell(os.environ, f"MAINPID={keeper}", *([systemd.READY] if ready else []))


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


def _restarted_line(outcome: Outcome) -> str:
    """Of those whose replacement has failed the old process is still ready: they are not counted."""
    failed = {error.get("name") for error in outcome.errors}
    restarted = [item for item in outcome.items if item.get("ready") and item["name"] not in failed]
    return f"{servers(len(restarted), len(outcome.items))} restarted" if outcome.items else ""
