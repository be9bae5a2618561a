"""The selected servers, asked of the supervisor where there is one, else read from the files."""

from __future__ import annotations

from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.remote import ask
from poolctl.control.client import NoSupervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.cli.pool_ref import Place
    from poolctl.cli.request import Request


def selected(request: Request, place: Place, verb: str = "list") -> Outcome:
    """The servers as they are now. Failure for a selection that matches nothing and for invalid files."""
    try:
        outcome = ask(request, place, verb)
    except NoSupervisor:
        if not place.files:
            raise
        from poolctl.cli.offline import select_from_files

        return Outcome(select_from_files(request, place))
    if outcome.exit_code:
        raise Failure(outcome)
    return outcome
