"""`poolctl list`: the selected servers, asked of the supervisor, else read from the files."""

from __future__ import annotations

from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_place
from poolctl.cli.remote import selected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from poolctl.cli.request import Request


def perform(request: Request) -> Outcome:
    """The selected servers as they are now; without a supervisor all of them are stopped."""
    outcome = selected(request, find_place(request))
    outcome.form = "table"
    return outcome
