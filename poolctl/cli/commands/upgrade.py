"""`poolctl upgrade`: a running pool goes on under this version of poolctl, its servers as they are."""

from __future__ import annotations

from poolctl import __version__
from poolctl.cli.command import CHANGES, OUTPUT, TIMEOUT, Command, flag
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.outcome import Item, Outcome
from poolctl.cli.plural import servers
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import ask
from poolctl.control.client import Client
from poolctl.control.upgrading import upgrade

COMMAND = Command(
    "Upgrade a running pool to this version of poolctl.",
    OUTPUT,
    TIMEOUT,
    flag("restart", "--restart", help="Also replace the servers' workers, as restart does."),
    flag("force", "--force", help="Even if the version is the same."),
    section=CHANGES,
)


def perform(request: CommandRequest) -> Outcome:
    """Replace keeper and supervisor if they are of another version; with --restart the servers' workers as well."""
    pool = find_pool(request)
    client = Client(pool.socket)
    before = str(client.ping().get("version"))
    if before == __version__ and not request.get("force"):
        outcome = Outcome(client.call("list")["items"])
        message = f"the pool already runs poolctl {before}"
        if not request.get("restart"):
            outcome.message = message
            return outcome
    else:
        outcome = Outcome.from_result(upgrade(client))
        message = f"poolctl {before} → {__version__}"
        if outcome.exit_code:
            return outcome
    # A job that is under way is not to be started again.
    serving = [item["name"] for item in outcome.items if item.get("pids") and not _is_job(item)]
    how = f"{servers(len(serving))} kept their workers; poolctl upgrade --restart replaces them"
    if request.get("restart") and serving:
        values = {**request.values, "targets": serving, "force": False}
        outcome = ask(CommandRequest("restart", values), pool)
        failed = {error.get("name") for error in outcome.errors}
        how = f"{servers(sum(name not in failed for name in serving), of=len(serving))} restarted"
    outcome.message = f"{message}: {how}"
    return outcome


def _is_job(item: Item) -> bool:
    return str(item.get("bind")).startswith("job:")
