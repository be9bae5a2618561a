"""How the files differ from the configuration in force: commands report it until a reload applies it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from poolctl.config import Stamp, changed_files, stamp_of
from poolctl.control.answers import (
    ChangedFiles,
    ErrorEntry,
    PlannedChange,
    ReloadResult,
    Result,
    failure,
    item,
)
from poolctl.core.decide import NO_OVERRIDES
from poolctl.core.server_files import digest_of
from poolctl.errors import PoolParamError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.json_form import to_json
from poolctl.selection.selector import Selector, select

from ..active_configuration import ReaderFailed
from .verb import Call, VerbContext, items

if TYPE_CHECKING:
    from .reload import Difference, Reload

# The commands that report it (others when they are asked to); the quick ones do not wait long for the numbers.
_REPORTING = frozenset({"start", "restart", "show", "list", "status"})
_QUICK = frozenset({"list", "status", "stats"})
_QUICK_SECONDS, _PATIENT_SECONDS = 0.1, 10.0
# A file system that does not answer must not hold up a command for ever.
_STAT_SECONDS = 2.0
# One that does not end holds up reloads.
_COMPARE_SECONDS = 60.0
# A watcher (--watch) applies a change within this time.
_WATCHER_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


class _Changed(NamedTuple):
    """The changed files as they are now, and the basis of comparison: the pool's servers and the variables in use."""

    files: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    revision: int
    variables: frozenset[tuple[str, str]]  # of servers by name, the digest of what their workers have read


class ConfigurationDrift:
    """Looks for changed files in a thread, and computes the effect of a reload once per change."""

    def __init__(self, context: VerbContext) -> None:
        self._context = context
        self._core = context.core
        self._configuration = context.configuration
        self._is_saving = False
        self._search: asyncio.Future[_Changed | None] | None = None
        self._comparing: tuple[_Changed, asyncio.Task[Difference | None]] | None = None
        # The files of variables, by their paths: as stat(2) had them, and the digest of their contents.
        self._variables: dict[tuple[str, ...], tuple[list[Stamp], str]] = {}

    async def report(self, verb: str, call: Call, result: Result) -> Result:
        """The result with the files that have changed, if its command reports them."""
        if not (verb in _REPORTING or call.options.get("files") is True) or result.ended:
            return result
        if (found := await self._look()) is None:
            return result
        quick = verb in _QUICK and not (self._is_saving or call.options.get("counts") is True)
        difference = await self._compared(found, _QUICK_SECONDS if quick else _PATIENT_SECONDS)
        if self._is_saving and difference is not None and _is_empty(difference):
            self._is_saving = False
            self._configuration.marks = difference.marks
            self._core.servers.revise()  # saved for a successor
            return result
        return replace(result, changed=to_json(_answer(found.files, difference)))

    async def apply_at_rest(self, call: Call) -> ReloadResult | None:
        """Put changed files in force if no server runs; None if there is nothing to apply, or something runs.

        Live changes hold until a reload.
        """
        if self._is_changed_live or self._runs or (found := await self._look()) is None:
            return None
        result = await self._reload().apply_at_rest(call)
        counts = _counted(result.changes or ())
        if result.exit_code or not any(counts):
            return result
        added, removed, changed = counts
        applied = ChangedFiles(files=found.files, added=added, removed=removed, changed=changed, applied=True)
        return replace(result, changed=to_json(applied))

    @property
    def _runs(self) -> bool:
        """Whether a server serves, or starts for the first time; one that cannot start does neither."""
        entries = self._core.entries.values()
        return not entries or any(
            entry.asleep
            or entry.on_schedule
            or (entry.observed.workers and not entry.observed.failures)
            or any(worker.ready_at is not None for worker in entry.observed.workers.values())
            for entry in entries
        )

    @property
    def _is_changed_live(self) -> bool:
        entries = self._core.entries.values()
        return bool(self._configuration.missing) or any(
            entry.added or entry.desired.overrides != NO_OVERRIDES for entry in entries
        )

    async def explain(self, call: Call, result: Result) -> Result:
        """The result of a selection that matched nothing; servers that only the changed files have are named."""
        if not call.selector.targets or (found := await self._look()) is None:
            return result
        difference = await self._compared(found, _PATIENT_SECONDS)
        if difference is None:
            return result
        here = items(self._core, self._core.entries.values())
        new = [item(server) for server in difference.servers if server.name not in self._core.entries]
        names: dict[str, None] = {}
        for target in call.selector.targets:
            if select(here, Selector([target]))[1] is not None:
                chosen, unmatched = select(new, Selector([target]))
                if unmatched is not None:
                    return replace(result, changed=to_json(_answer(found.files, difference)))
                names.update((each.name, None) for each in chosen)
        file = self._configuration.files[0]
        errors = [_not_in_pool(name, difference.files.get(name, file)) for name in names]
        return Result(errors=tuple(errors), exit_code=NOTHING_MATCHED) if errors else result

    def expect_saved(self) -> None:
        """Ignore the next change of the files: a command is about to write its live change to them."""
        self._is_saving = True

    async def _look(self) -> _Changed | None:
        """The changed files; None without any, and while a watcher is about to apply them."""
        if self._configuration.marks is None:
            return None
        if self._search is None or self._search.done():
            reading = [
                entry
                for entry in self._core.entries.values()
                if entry.config.env_file and entry.observed.workers and "env_file" in entry.observed.files
            ]
            in_use = {(tuple(entry.config.env_file), entry.observed.files["env_file"]) for entry in reading}
            variables = frozenset((entry.name, entry.observed.files["env_file"]) for entry in reading)
            work = asyncio.to_thread(self._changed, in_use, self._core.servers.revision, variables)
            self._search = asyncio.ensure_future(work)
        try:
            return await asyncio.wait_for(asyncio.shield(self._search), _STAT_SECONDS)
        except TimeoutError:
            return None

    def _changed(
        self, in_use: set[tuple[tuple[str, ...], str]], revision: int, variables: frozenset[tuple[str, str]]
    ) -> _Changed | None:
        """`in_use` are files of variables, by their paths, with the digest of what running workers have read."""
        named = self._configuration.files
        files = changed_files(self._configuration.marks or {}, named)
        # A named file that is gone is reported by every command that would read it.
        files = [path for path in files if path not in named or os.path.lexists(path)]
        files += dict.fromkeys(path for paths, digest in in_use for path in self._differing(paths, digest))
        if not files:
            return None
        stamps = tuple(map(stamp_of, files))
        newest = max((stamp[1] for stamp in stamps if stamp is not None), default=0)
        young = 0 <= time.time_ns() - newest < _WATCHER_SECONDS * 1e9
        if young and _is_watched(self._configuration.runtime_directory):
            return None
        return _Changed(tuple(files), stamps, revision, variables)

    def _differing(self, paths: tuple[str, ...], digest: str) -> list[str]:
        """The files of variables whose combined contents no longer have this digest: the files that were modified."""
        before, known = self._variables.get(paths, ([], ""))
        now = [stamp_of(path) for path in paths]
        if now != before:
            known = digest_of(paths)
        if known == digest:
            self._variables[paths] = now, known
            return []
        return [path for path, stamp in zip(paths, now, strict=True) if stamp not in before] or [*paths]

    async def _compared(self, found: _Changed, seconds: float) -> Difference | None:
        """The effect of a reload of these files; None if it is not known within the time limit."""
        if self._comparing is None or self._comparing[0] != found:
            self._comparing = found, asyncio.ensure_future(self._compare())
        try:
            return await asyncio.wait_for(asyncio.shield(self._comparing[1]), seconds)
        except TimeoutError:
            return None

    async def _compare(self) -> Difference | None:
        try:
            async with asyncio.timeout(_COMPARE_SECONDS):
                return await self._reload().difference()
        except (ReaderFailed, TimeoutError):
            return None  # a reload says why
        except Exception:
            logger.exception("the changed files cannot be compared with the configuration in force")
            return None

    def _reload(self) -> Reload:
        # A start that finds nothing changed does without it.
        made: Reload = import_module(f"{__package__}.reload").Reload(self._context)
        return made


def _counted(changes: Sequence[PlannedChange]) -> tuple[int, int, int]:
    """The number of servers and tables added, removed and changed; live changes do not count."""
    kinds = (("add",), ("remove",), ("restart", "update"))
    added, removed, changed = (len({each.name for each in changes if each.change in kind}) for kind in kinds)
    return added, removed, changed


def _is_empty(difference: Difference) -> bool:
    """Whether the files match the configuration in force."""
    return not (any(_counted(difference.changes)) or difference.problems)


def _is_watched(directory: str) -> bool:
    """Whether a watcher holds its lock on the pool's runtime directory."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _not_in_pool(name: str, file: str) -> ErrorEntry:
    message = f"{name} is in {os.path.basename(file)} but not in the running pool: poolctl reload"
    return failure(PoolParamError, message)


def _answer(files: tuple[str, ...], difference: Difference | None) -> ChangedFiles:
    if difference is None:
        return ChangedFiles(files=files)
    if difference.problems:
        return ChangedFiles(files=files, problem=difference.problems[0], problems=len(difference.problems))
    added, removed, changed = _counted(difference.changes)
    return ChangedFiles(files=files, added=added, removed=removed, changed=changed)
