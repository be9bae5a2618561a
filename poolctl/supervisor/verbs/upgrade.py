"""The verb `upgrade`: another version of poolctl replaces keeper and supervisor; the workers continue to serve."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import dataclass

from poolctl import __version__
from poolctl.config import changed_files
from poolctl.control.answers import ErrorEntry, Result, UpgradeResult, failure
from poolctl.control.client import stop_and_start
from poolctl.control.protocol import CHECK, PROTOCOL
from poolctl.core.configuration_diff import Kind
from poolctl.core.server_entry import record_of
from poolctl.errors import PoolRestartError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION
from poolctl.json_form import from_json

from ..configuration_reader import ReaderFailed
from ..takeover.state_store import encoded
from .reload import Reload
from .verb import Call, VerbContext, items

_CHECK_SECONDS = 90.0
_KILLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverCheckReport:
    """The next version's report, before an upgrade, on whether it can use the active configuration.

    `problem` is why the configuration cannot be used, or "". Without a `problem`, `errors` are those in the active
    configuration. With a `problem`, the next version would read the files, and `errors` are those in the files.
    """

    problem: str = ""
    errors: tuple[ErrorEntry, ...] = ()


class Upgrade:
    """The verb `upgrade`. The next version continues with the active configuration, even if the files have changed."""

    def __init__(self, context: VerbContext) -> None:
        self._configuration, self._core = context.configuration, context.core
        self._files = context.configuration.files
        self._reload = Reload(context)
        self._daemon = context.daemon
        self._build = context.build

    async def upgrade(self, call: Call) -> Result:
        """Hand over to the version that the options of `call` describe, or refuse with the reason."""
        version, python = str(call.options.get("version")), str(call.options.get("python"))
        if older := refusal_of_older(version, call.options["protocol"], self._files):
            return older
        if python.split(".")[:2] != sys.version.split()[0].split(".")[:2]:
            message = f"the pool runs on Python {sys.version.split()[0]}, poolctl {version} on {python}"
            return _refused(message, stop_and_start(self._files))
        is_forced = call.options.get("force")
        if not is_forced and await self._build.is_running(call.options.get("build") or ""):
            return UpgradeResult(items=items(self._core, self._core.entries.values()))
        if problem := await self._problem_of_next_version(call):
            return problem
        async with self._configuration.turn:  # a reload in progress is completed first
            self._daemon.hand_over(call.options["keeper"], call.options["supervisor"])
        return UpgradeResult(items=items(self._core, self._core.entries.values()), upgraded_from=os.getpid())

    async def _problem_of_next_version(self, call: Call) -> Result | None:
        """Have the next version check whether it can take over: None if it can, else the error to answer with."""
        in_force = encoded(self._configuration.snapshot(self._core))
        desired = json.dumps({name: record_of(entry) for name, entry in self._core.entries.items()})
        command = [*call.options["supervisor"], CHECK, *self._files]
        output, failed = await _run(command, in_force + b"\n" + desired.encode())
        if not failed:
            try:
                check = from_json(TakeoverCheckReport, json.loads(output))
            except (ValueError, AttributeError):
                failed = f"its check printed {output[:80]!r}"
            else:
                if check.errors:
                    return Result(errors=check.errors, exit_code=INVALID_CONFIGURATION)
                return (check.problem and await self._refusal_if_files_differ(call, check.problem)) or None
        message = f"poolctl {call.options.get('version')} cannot take over: {failed}"
        hint = "nothing has changed, the pool goes on; repair that version, then repeat poolctl upgrade"
        return _refused(message, hint)

    async def _refusal_if_files_differ(self, call: Call, problem: str) -> Result | None:
        """An error if the files, which the next version would read, differ from the active configuration; else None."""
        why = (
            f"poolctl {call.options.get('version')} cannot go on with the configuration in force ({problem})"
        )
        try:
            plan = await self._reload.reload(call._replace(options={**call.options, "dry_run": True}))
        except ReaderFailed as failed:
            if not failed.installed:
                raise
            return await self._refusal_if_changed_since_reading(why)
        if plan.errors:
            return plan
        # Live changes are handed over, except added and removed servers, whose key `name` differs.
        if all(
            change.change == Kind.OVERRIDE.value and "name" not in change.keys
            for change in plan.changes or ()
        ):
            return None
        hint = "poolctl reload --dry-run shows the difference, poolctl reload applies the files"
        return _refused(f"{why}, and the files differ from it", hint)

    async def _refusal_if_changed_since_reading(self, why: str) -> Result | None:
        """Return an error if files have changed on disk, or commands have added or removed servers; else None.

        Compares the files with the marks (stat(2) and digest) of their last reading. Used if this version can no longer
        read the files, because another version is installed.
        """
        configuration = self._configuration
        if changed := await asyncio.to_thread(changed_files, configuration.marks or {}, self._files):
            hint = f"undo the change and repeat poolctl upgrade, or {stop_and_start(self._files)}"
            return _refused(f"{why}, and {', '.join(changed)} changed since the pool read its files", hint)
        if configuration.missing or any(entry.added for entry in self._core.entries.values()):
            return _refused(f"{why}, and servers were added or removed live", stop_and_start(self._files))
        return None


def refusal_of_older(version: str, protocol: int, files: Sequence[str]) -> Result | None:
    """An error if the next version or its protocol is older, as it may not understand the saved state; else None."""
    if protocol >= PROTOCOL and _release(version) >= _release(__version__):
        return None
    which = "this build of " if version == __version__ else ""
    message = (
        f"the pool runs poolctl {__version__}, and {which}poolctl {version} is older: it cannot take over"
    )
    return _refused(message, f"install {__version__} or a newer one; or {stop_and_start(files)}")


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


async def _run(command: list[str], stdin: bytes) -> tuple[str, str]:
    """Run the command with this input; returns its output and "", or "" and why it failed."""
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    except OSError as error:
        return "", f"{command[0]} cannot be run: {error.strerror}"
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            stdout, stderr = await process.communicate(stdin)
    except TimeoutError:
        process.kill()
        with contextlib.suppress(TimeoutError):  # one of its children may keep the pipes open
            async with asyncio.timeout(_KILLED_SECONDS):
                await process.wait()
        return "", f"{command[0]} did not finish within {_CHECK_SECONDS:g} s"
    if process.returncode == 0:
        return stdout.decode(errors="replace"), ""
    reason = stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return "", reason or f"exit status {process.returncode}"


def _refused(message: str, hint: str) -> Result:
    return Result(errors=(failure(PoolRestartError, message, hint),), exit_code=CONFLICT)
