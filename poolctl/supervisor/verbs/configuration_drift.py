"""Files that have changed since the pool read them: other commands report what a reload would change.

`start` applies the files if they change only servers at rest.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from poolctl.config import Stamp, changed_files, stamp_of
from poolctl.control.answers import ChangedFiles, Item, Result, failure
from poolctl.core.configuration_diff import digest_of
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import NO_OVERRIDES
from poolctl.errors import PoolParamError
from poolctl.exit_codes import INVALID_CONFIGURATION, NOTHING_MATCHED
from poolctl.json_form import to_json
from poolctl.selection.selector import NothingMatched, Selector, select

from ..configuration_reader import ReaderFailed
from .reload import PlannedReload, Reload, new_items
from .verb import Call, VerbContext, items

# Commands that always report changed files; quick ones do not wait long for the numbers of changes.
_REPORTING = frozenset({"start", "restart", "show", "list", "status"})
_QUICK = frozenset({"list", "status", "stats"})
# How long a command waits for the search of changed files, whose disk may hang, and for the numbers of changes.
_SEARCH_SECONDS, _QUICK_SECONDS, _NUMBERS_SECONDS = 2.0, 0.1, 10.0
# The limit for comparing files, because reloads wait for it.
_COMPARE_SECONDS = 60.0
# A watcher (--watch) applies a change within this time.
_WATCHER_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


class _ChangedInputs(NamedTuple):
    """The changed files with their stat stamps, the servers' revision, and digests of the env files in use."""

    files: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    revision: int
    variables: frozenset[tuple[str, str]]  # server names with the digests of their workers' env files


def _works(entry: Entry) -> bool:
    """Whether the server serves, sleeps, is scheduled, or starts without failures so far."""
    workers = entry.observed.workers
    starts = bool(workers) and not entry.observed.failures
    is_ready = any(worker.ready_at is not None for worker in workers.values())
    return entry.is_asleep or entry.on_schedule or starts or is_ready


class ConfigurationDrift:
    """Detects changed files, and computes the effect of a reload once per change."""

    def __init__(self, context: VerbContext) -> None:
        self._core = context.core
        self._configuration = context.configuration
        self._reload = Reload(context)
        self._is_saving = False
        self._search: asyncio.Future[_ChangedInputs | None] | None = None
        self._comparing: tuple[_ChangedInputs, asyncio.Task[PlannedReload | None]] | None = None
        # By the paths of env files: their stamps from stat(2), and the digest of their contents.
        self._variables: dict[tuple[str, ...], tuple[list[Stamp], str]] = {}

    async def add_changed_files(self, verb: str, call: Call, result: Result) -> Result:
        """The result, with the changed files added if the command reports them and there are any."""
        if not (verb in _REPORTING or call.options.get("files") is True) or result.ended:
            return result
        if (inputs := await self._find_changes()) is None:
            return result
        quick = verb in _QUICK and not (self._is_saving or call.options.get("counts") is True)
        seconds = _QUICK_SECONDS if quick else _NUMBERS_SECONDS
        difference = await self._difference_within_seconds(inputs, seconds)
        if self._is_saving and difference is not None and difference.is_empty:
            self._is_saving = False
            self._configuration.marks = difference.reading.marks
            self._core.servers.note_revision()
            return result
        return replace(result, changed=to_json(_summarize_changed_files(inputs.files, difference)))

    async def apply_if_at_rest(self, call: Call) -> Result | None:
        """Apply changed files whose servers are all at rest, or fail; return the errors or, in `changed`, the changes.

        Return None, and apply nothing, if the files change a server that works, the pool is empty, or no file has
        changed. Also return None if commands have changed servers, because such changes stay in effect until a reload.
        """
        entries = self._core.entries.values()
        is_changed_live = bool(self._configuration.missing) or any(
            entry.added or entry.desired.overrides != NO_OVERRIDES for entry in entries
        )
        if not entries or is_changed_live or (inputs := await self._find_changes()) is None:
            return None
        working = [entry.name for entry in entries if _works(entry)]
        plan = await self._reload.apply_to_servers_at_rest(call, working)
        if plan is None:
            return None
        if plan.problems:
            return Result(errors=tuple(plan.problems), exit_code=INVALID_CONFIGURATION)
        if plan.is_empty:
            return Result()
        return Result(changed=to_json(replace(_summarize_changed_files(inputs.files, plan), applied=True)))

    async def explain_missing_servers(self, call: Call, result: Result) -> Result:
        """If the files now have all selected servers that the pool lacks, return an error for each; else `result`."""
        if not call.selector.targets or (inputs := await self._find_changes()) is None:
            return result
        difference = await self._difference_within_seconds(inputs, _NUMBERS_SECONDS)
        if difference is None:
            return result
        in_pool = items(self._core, self._core.entries.values())
        new = new_items(difference.reading, self._core)
        names: dict[str, None] = {}
        for target in call.selector.targets:
            if not _names_matching(in_pool, target):
                if not (in_files := _names_matching(new, target)):
                    return replace(
                        result, changed=to_json(_summarize_changed_files(inputs.files, difference))
                    )
                names.update(dict.fromkeys(in_files))
        file = self._configuration.files[0]
        errors = []
        for name in names:
            written = os.path.basename(difference.reading.files.get(name, file))
            message = f"{name} is in {written} but not in the running pool: poolctl reload"
            errors.append(failure(PoolParamError, message))
        return Result(errors=tuple(errors), exit_code=NOTHING_MATCHED) if errors else result

    def ignore_next_change(self) -> None:
        """Do not report the next change of the files, because a command is about to save its own change there."""
        self._is_saving = True

    async def _find_changes(self) -> _ChangedInputs | None:
        """Return the changed files; None if there are none, if `--watch` applies them, or if the disk hangs."""
        if self._configuration.marks is None:
            return None
        if self._search is None or self._search.done():
            reading = [
                entry
                for entry in self._core.entries.values()
                if entry.config.env_file and entry.observed.workers and "env_file" in entry.observed.files
            ]
            in_use = {(entry.config.env_file_paths, entry.observed.files["env_file"]) for entry in reading}
            variables = frozenset((entry.name, entry.observed.files["env_file"]) for entry in reading)
            work = asyncio.to_thread(
                self._find_changed_inputs, in_use, self._core.servers.revision, variables
            )
            self._search = asyncio.ensure_future(work)
        try:
            return await asyncio.wait_for(asyncio.shield(self._search), _SEARCH_SECONDS)
        except TimeoutError:
            return None

    def _find_changed_inputs(
        self, in_use: set[tuple[tuple[str, ...], str]], revision: int, variables: frozenset[tuple[str, str]]
    ) -> _ChangedInputs | None:
        """Return the changed files; None if there are none, or if a `--watch` process is about to apply the changes.

        Each pair in `in_use` has the paths of env files, and the digest of the contents that running workers have read.
        """
        named = self._configuration.files
        files = changed_files(self._configuration.marks or {}, named)
        # A missing env file is reported by every command that would read it.
        files = [path for path in files if path not in named or os.path.lexists(path)]
        files += dict.fromkeys(
            path for paths, digest in in_use for path in self._modified_env_files(paths, digest)
        )
        if not files:
            return None
        stamps = tuple(map(stamp_of, files))
        newest = max((stamp[1] for stamp in stamps if stamp is not None), default=0)
        young = 0 <= self._core.clock.time() * 1e9 - newest < _WATCHER_SECONDS * 1e9
        if young and _has_watch_process(self._configuration.runtime_directory):
            return None
        return _ChangedInputs(tuple(files), stamps, revision, variables)

    def _modified_env_files(self, paths: tuple[str, ...], digest: str) -> list[str]:
        """The env files in `paths` that were modified; empty if their combined contents still have this digest."""
        stamps_before, current = self._variables.get(paths, ([], ""))
        stamps = [stamp_of(path) for path in paths]
        if stamps != stamps_before:
            current = digest_of(paths)
        if current == digest:
            self._variables[paths] = stamps, current
            return []
        return [path for path, stamp in zip(paths, stamps, strict=True) if stamp not in stamps_before] or [
            *paths
        ]

    async def _difference_within_seconds(
        self, inputs: _ChangedInputs, seconds: float
    ) -> PlannedReload | None:
        """The changes that a reload of these files would make; None if they are not computed within `seconds`."""
        if self._comparing is None or self._comparing[0] != inputs:
            self._comparing = inputs, asyncio.ensure_future(self._compare())
        try:
            return await asyncio.wait_for(asyncio.shield(self._comparing[1]), seconds)
        except TimeoutError:
            return None

    async def _compare(self) -> PlannedReload | None:
        try:
            async with asyncio.timeout(_COMPARE_SECONDS):
                return await self._reload.difference()
        except (ReaderFailed, TimeoutError):
            return None  # the reason is reported by a reload
        except Exception:
            logger.exception("the changed files cannot be compared with the configuration in force")
            return None


def _has_watch_process(directory: str) -> bool:
    """Whether a `--watch` process watches the pool's files; such a process locks the pool's runtime directory."""
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


def _names_matching(servers: Iterable[Item], target: str) -> list[str]:
    """The names of the servers that `target` selects; empty if it matches none."""
    try:
        return [item.name for item in select(servers, Selector([target]))]
    except NothingMatched:
        return []


def _summarize_changed_files(files: tuple[str, ...], difference: PlannedReload | None) -> ChangedFiles:
    if difference is None:
        return ChangedFiles(files=files)
    if difference.problems:
        return ChangedFiles(files=files, problem=difference.problems[0], problems=len(difference.problems))
    added, removed, changed = difference.counts
    return ChangedFiles(files=files, added=added, removed=removed, changed=changed)
