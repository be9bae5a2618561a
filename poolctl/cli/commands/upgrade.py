"""`poolctl upgrade`: a running pool goes on under this version of poolctl, its servers as they are."""

from __future__ import annotations

from poolctl import __version__
from poolctl.cli.counting import servers
from poolctl.cli.outcome import Item, Outcome
from poolctl.cli.place import find_place
from poolctl.cli.remote import ask
from poolctl.cli.request import Request
from poolctl.control.client import Client
from poolctl.control.upgrading import upgrade


def perform(request: Request) -> Outcome:
    """Exchange keeper and supervisor; the servers' processes too with --restart, one after the other."""
    place = find_place(request)
    client = Client(place.socket)
    before = str(client.ping().get("version"))
    if before == __version__ and not request.get("force"):
        return Outcome(client.call("list")["items"], message=f"the pool is run by poolctl {before} already")
    outcome = Outcome.from_result(upgrade(client))
    if outcome.exit_code:
        return outcome
    # A job that is under way is not to begin anew.
    serving = [item["name"] for item in outcome.items if item.get("pids") and not _is_job(item)]
    how = "went on as before; poolctl restart renews their processes"
    if request.get("restart") and serving:
        outcome = ask(Request("restart", {**request.values, "targets": serving}), place)
        how = "restarted"
    outcome.message = f"poolctl {before} → {__version__}: {servers(len(serving))} {how}"
    return outcome


def _is_job(item: Item) -> bool:
    return str(item.get("bind")).startswith("job:")
