"""The verb `upgrade`: another version of poolctl replaces keeper and supervisor; the workers continue to serve."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE

from poolctl import __version__, bootstrap
from poolctl.config import changed_files
from poolctl.control.answers import (
    CHECK,
    TRIED,
    TRY,
    ErrorEntry,
    PlannedChange,
    Result,
    UpgradeResult,
    failure,
)
from poolctl.errors import PoolRestartError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION
from poolctl.frozen_value import Table

from ..configuration_reader import ReaderFailed
from .reload import Reload
from .reload_diff import Kind
from .verb import Call, Verb, VerbContext

# The next version reads configurations from the files again; overrides, such as the number of workers, are handed on.
_HANDED_ON = Kind.OVERRIDE.value
# The trials have their own time limits; this one is for a trial that hangs before they apply.
_TRIAL_SECONDS = 90.0


class Upgrade:
    """Checks with `reload` that the files say what is in force: the next version reads those."""

    def __init__(self, context: VerbContext, reload: Reload) -> None:
        self._configuration, self._core = context.configuration, context.core
        self._files = context.configuration.files
        self._reload = reload
        self._daemon = context.daemon

    async def upgrade(self, call: Call) -> Result:
        """Refuse, with the reason, or answer and hand over. The options are those of the client's `upgrade`."""
        version, python = str(call.options.get("version")), str(call.options.get("python"))
        if python.split(".")[:2] != sys.version.split()[0].split(".")[:2]:
            message = f"the pool runs on Python {sys.version.split()[0]}, poolctl {version} on {python}"
            return _refused(message, "poolctl stop and poolctl start move it, and its servers pause")
        difference = await self._differs(call)
        if not difference.errors and not call.options.get("tried"):
            if problem := await self._try(call.options):
                return problem
            # The trial took a while, and the files may have changed.
            difference = await self._differs(call)
        if difference.errors:
            return difference
        self._daemon.hand_over(call.options["keeper"], call.options["supervisor"])
        return UpgradeResult(items=difference.items, upgraded_from=os.getpid())

    async def _differs(self, call: Call) -> Result:
        """The result of `reload --dry-run`; with an error if the next version would not know a running server."""
        try:
            difference = await self._reload.reload(call._replace(options={**call.options, "dry_run": True}))
        except ReaderFailed as failed:
            if not failed.installed:
                raise
            return await self._differs_by_marks()
        if difference.errors or not any(_is_lost(change) for change in difference.changes or ()):
            return difference
        return _refused(
            "the running servers differ from the files, which the next version would use",
            "poolctl reload --dry-run shows the difference, poolctl reload applies the files",
        )

    async def _differs_by_marks(self) -> Result:
        """Likewise, when what reads the files is of another version already: by what they were when they were read."""
        configuration, here = self._configuration, f"poolctl {__version__}"
        changed = await asyncio.to_thread(changed_files, configuration.marks or {}, self._files)
        if not (changed or configuration.missing or any(each.added for each in self._core.entries.values())):
            return Result()
        what = f"{', '.join(changed)} changed" if changed else "servers were added or removed"
        message = (
            f"{what} since the pool read its files, and {here}, which could compare them, is not installed"
        )
        return _refused(
            message, f"install {here} again, poolctl reload, then install the next version and upgrade"
        )

    async def _try(self, options: Table) -> Result | None:
        """Why the next version cannot take over, in our environment; None when it has taken over a small pool."""
        files, on_disk = self._files, bootstrap.installed_version() == __version__
        env = {**os.environ, TRIED: "1"} if on_disk else None
        said, failed = await _run([*options["supervisor"], CHECK, *files], env)
        problems: list[Table] = []
        if not failed:
            try:
                problems = json.loads(said)
            except ValueError:
                failed = f"its check printed {said[:80]!r}"
        if on_disk and not (failed or problems):
            argv = bootstrap.command(sys.executable, "supervisor", TRY, json.dumps(options), *files)
            _, failed = await _run(argv)
        if failed:
            message = f"poolctl {options.get('version')} cannot take over: {failed}"
            hint = "nothing has changed, the pool goes on; repair that version, then repeat poolctl upgrade"
            return _refused(message, hint)
        errors = tuple(map(ErrorEntry.from_json, problems))
        return Result(errors=errors, exit_code=INVALID_CONFIGURATION) if errors else None


async def _run(command: list[str], env: dict[str, str] | None = None) -> tuple[str, str]:
    """The output of the command, and the last line of its errors, which is empty only if it ends with 0."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=env
        )
    except OSError as error:
        return "", f"{command[0]} cannot be run: {error.strerror}"
    try:
        async with asyncio.timeout(_TRIAL_SECONDS):
            said, failed = await process.communicate()
    except TimeoutError:
        process.kill()
        return "", f"{command[0]} did not finish within {_TRIAL_SECONDS:g} s"
    if process.returncode == 0:
        return said.decode(), ""
    return "", failed.decode(errors="replace").strip().rpartition("\n")[
        2
    ] or f"exit status {process.returncode}"


def _is_lost(change: PlannedChange) -> bool:
    # The key `name`: it was added or removed live.
    return change.change != _HANDED_ON or "name" in change.keys


def _refused(message: str, hint: str) -> Result:
    return Result(errors=(failure(PoolRestartError, message, hint),), exit_code=CONFLICT)


def verbs(context: VerbContext) -> dict[str, Verb]:
    """This verb, and reload, whose plan it asks for: one at a time."""
    reload = Reload(context)
    return {"reload": reload.reload, "upgrade": Upgrade(context, reload).upgrade}
