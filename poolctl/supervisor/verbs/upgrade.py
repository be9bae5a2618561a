"""The verb upgrade: keeper and supervisor give their places to another version of poolctl; the workers serve on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable

from poolctl.control.messages import CHECK, Document, failure, result
from poolctl.control.server import Progress
from poolctl.errors import PoolRestartError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION
from poolctl.pool.select import Selector

from .changes import Kind

# What a server runs with is read anew by the version that follows; how many workers it has, and the like, is handed on.
_HANDED_ON = Kind.OVERRIDE.value

Verb = Callable[[Selector, Document, Progress], Awaitable[Document]]


class Upgrade:
    """`reload` says what differs from the files, `succeed` gives the place away once the answer has gone out.

    It is called with the commands of the next keeper and of the next supervisor.
    """

    def __init__(
        self, files: list[str], reload: Verb, succeed: Callable[[list[str], list[str]], None]
    ) -> None:
        self._files = files
        self._reload = reload
        self._succeed = succeed

    async def upgrade(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Refuse, with the reason, or answer and make way. The options are those of the client's `upgrade`."""
        version, python = str(options.get("version")), str(options.get("python"))
        if python.split(".")[:2] != sys.version.split()[0].split(".")[:2]:
            message = f"the pool runs on Python {sys.version.split()[0]}, poolctl {version} on {python}"
            return _refused(message, "poolctl stop and poolctl start move it, and its servers pause")
        difference = await self._reload(selector, {**options, "dry_run": True}, progress)
        if difference["errors"]:
            return difference
        if any(_is_lost(change) for change in difference["changes"]):
            return _refused(
                "what runs is not what the files say, which the next version goes by",
                "poolctl reload --dry-run shows the difference, poolctl reload applies the files",
            )
        if problem := await self._check(options["supervisor"]):
            return problem
        self._succeed(options["keeper"], options["supervisor"])
        return result(difference["items"], upgraded_from=os.getpid())

    async def _check(self, command: list[str]) -> Document | None:
        """What the next version has to say against itself, in our environment: that it is not there, or the files."""
        process = await asyncio.create_subprocess_exec(
            *command, CHECK, *self._files, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, failed = await process.communicate()
        if process.returncode == 0:
            problems = json.loads(said)
            return result([], problems, exit_code=INVALID_CONFIGURATION) if problems else None
        last = failed.decode(errors="replace").strip().rpartition("\n")[2]
        return _refused(f"the other version does not run: {last}", f"try {command[0]} -m poolctl version")


def _is_lost(change: Document) -> bool:
    # Named by its name: it was added or removed live.
    return change["change"] != _HANDED_ON or "name" in change["keys"]


def _refused(message: str, hint: str) -> Document:
    return result([], [failure(PoolRestartError, message, hint)], exit_code=CONFLICT)
