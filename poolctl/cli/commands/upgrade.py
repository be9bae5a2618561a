"""`poolctl upgrade`: upgrades a running pool to this version of poolctl without touching its servers."""

from __future__ import annotations

import contextlib

from poolctl import __version__
from poolctl.bootstrap import installed_build
from poolctl.cli.command_line import OUTPUT, TIMEOUT, Command, CommandRequest, flag
from poolctl.cli.outcome import Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import server_count_text
from poolctl.cli.supervisor_requests import ask
from poolctl.control.answers import Result
from poolctl.control.client import Client, SupervisorFailed

COMMAND = Command(
    "Upgrade a running pool to this version of poolctl.",
    OUTPUT,
    TIMEOUT,
    flag("--restart", "Also replace the servers' workers, as restart does."),
    flag(
        "--allow-same-version",
        "Replace keeper and supervisor even if they are of this build.",
        key="force",
    ),
    section="Machine",
)


def perform(request: CommandRequest) -> Outcome:
    """Replace the pool's keeper and supervisor processes by this build, and with --restart the workers as well."""
    pool = find_pool(request)
    client = Client(pool.socket)
    about = None
    with contextlib.suppress(SupervisorFailed):
        about = client.ping()
    upgraded = client.upgrade(force=bool(request.get("force")))
    result: Result = upgraded
    if result.exit_code:
        return Outcome.of(result)
    if about is None:
        message = f"the pool, whose supervisor had failed, runs poolctl {__version__}"
    elif upgraded.upgraded_from is None:
        message = f"the pool already runs poolctl {about.version}"
        if not request.get("restart"):
            return Outcome.of(
                result, f"{message}, this build; upgrade --allow-same-version replaces its processes"
            )
    elif about.build == installed_build():
        message = f"poolctl {__version__}, the same build, in new processes"
    else:
        build = ", another build" if about.version == __version__ else ""
        message = f"poolctl {about.version} → {__version__}{build}"
    # A running job must not be started again.
    serving = [item.name for item in result.items if item.pids and not item.bind.startswith("job:")]
    whose = "its" if len(serving) == 1 else "their"
    how = f"{server_count_text(len(serving))} kept {whose} workers; poolctl upgrade --restart replaces them"
    if request.get("restart") and serving:
        values = {**request.values, "targets": serving, "force": False}
        result = ask(CommandRequest("restart", values), pool)
        failed = {error.name for error in result.errors}
        how = f"{server_count_text(sum(name not in failed for name in serving), of=len(serving))} restarted"
    return Outcome.of(result, f"{message}: {how}")
