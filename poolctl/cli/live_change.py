"""Shared by the commands that change the running pool: `drain`, `undrain`, `enable`, `disable`, `scale`, `remove`.

With --save they also change the files: the new files are checked before the live change, and written after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from poolctl import exit_codes
from poolctl.cli.offline import load, no_server_outcome, select_from_files
from poolctl.cli.options import ExplicitSelection, Filters, Save, Wait, flags
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import relative_to_cwd, server_count_text
from poolctl.cli.supervisor_requests import Request, ask, selected
from poolctl.config import MASK
from poolctl.control.answers import ErrorEntry, Item, Result, item_from_config
from poolctl.control.client import Client, NoSupervisor
from poolctl.errors import ControlError, PoolError, PoolValidateError
from poolctl.selection.selector import missing_selection_error

if TYPE_CHECKING:
    from poolctl.config import Problem

# Save the change even if it failed for some servers, or timed out.
_SAVED_EXIT_CODES = (exit_codes.DONE, exit_codes.FAILED, exit_codes.TIMED_OUT)

NO_SAVE = Save()
# Maximum number of attempts to write, because other commands may edit the files at the same time.
_ATTEMPTS = 20


def change_servers(
    verb: str,
    place: Place,
    selection: ExplicitSelection,
    wait: Wait,
    report: Callable[[Result], str],
    *,
    save: Save = NO_SAVE,
    write: Callable[[WriteBack, list[str]], None] | None = None,
    works_offline: bool = True,
    options: Mapping[str, object] | None = None,
    removes: bool = False,
) -> Outcome:
    """Change the selected servers in the running pool and, with --save, in the files; returns when this is done.

    `report` returns the final line about the servers. `write` applies the change to the draft of the files; without it
    files cannot store the change. If no supervisor runs, only the files are changed, unless `works_offline` is false.
    With `removes`, servers that are only in the files are removed from them.
    """
    pool = find_pool(place)
    _require_selection(verb, place, selection, pool)
    request_options = {
        "wait": not wait.no_wait,
        **flags(all=selection.everything, saves=save.save),
        **(options or {}),
    }
    request = Request(verb, place, selection, request_options, wait.timeout)

    def live() -> Outcome:
        result = ask(request, pool)
        return Outcome.of(result, _final_line(result, report))

    if write is None or not save.save:
        return live()
    selection.selector()  # a mistake in it is reported before anything is read
    files = WriteBack(pool, allow_empty=selection.allow_empty, dry_run=save.dry_run)
    items, running = _selected_items_and_is_live(
        files, request, pool, works_offline=works_offline, removes=removes
    )
    write(files, [item.name for item in items])
    return files.apply_and_write(
        live if running else lambda: _files_only_outcome(files, items, report, removes=removes)
    )


def _require_selection(verb: str, place: Place, selection: ExplicitSelection, pool: PoolRef) -> None:
    """Raise UsageError unless there is either a selection or --all, because a live change has no default selection."""
    if not selection.selector().selects_all:
        if selection.everything:
            raise UsageError(f"{verb}: --all and a selection cannot be combined")
    elif not selection.everything:
        count = None  # unknown if no supervisor answers and the files cannot be used
        with suppress(Failure, PoolError, ControlError):
            count = len(selected(replace(place, quiet=True), Filters(), pool, command="list").items)
        needed = missing_selection_error(verb, count)
        raise UsageError(needed.message, hint=needed.hint)


def _selected_items_and_is_live(
    files: WriteBack, request: Request, pool: PoolRef, *, works_offline: bool, removes: bool
) -> tuple[Sequence[Item], bool]:
    """Return the selected servers, and True to change the running pool or False to change only the files.

    False is returned if no supervisor runs, or if `removes` is set and the running pool has no selected server. Without
    `works_offline`, a missing supervisor raises NoSupervisor instead. Raises Failure if the selection fails.
    """
    if not files.supervised:
        if not works_offline:
            raise NoSupervisor
        return select_from_files(request.selection, pool), False
    chosen = ask(Request("list", request.place, request.selection), pool)
    if chosen.exit_code == exit_codes.NOTHING_MATCHED and removes:
        # A server already removed from the running pool can still be removed from the files.
        return select_from_files(request.selection, pool), False
    if chosen.exit_code:
        raise Failure(Outcome.of(chosen))
    return chosen.items, True


def _files_only_outcome(
    files: WriteBack, items: Sequence[Item], report: Callable[[Result], str], *, removes: bool
) -> Outcome:
    """Return the outcome to print if only the files change: the selected servers, and the message from `report`."""
    unchanged: list[str] = []
    if not removes:
        before = {item.name: item.state for item in items}
        items = [item_from_config(server) for server in files.draft.load_validated() if server.name in before]
        unchanged = [item.name for item in items if item.state == before[item.name]]
    return Outcome(items, message=_final_line(Result(items=tuple(items), unchanged=tuple(unchanged)), report))


def _final_line(result: Result, report: Callable[[Result], str]) -> str:
    if result.items:
        return report(result)
    return "" if result.exit_code else "no server selected"


class WriteBack:
    """Writes a change to a pool's configuration files: `now` is the unchanged configuration, `draft` the new files."""

    def __init__(self, pool: PoolRef, *, allow_empty: bool = False, dry_run: bool = False) -> None:
        """Read the pool's files. Raises PoolValidateError if they are unreadable, Failure (exit 5) if invalid.

        With `dry_run` nothing is changed. With `allow_empty` the new files need no server.
        """
        self.pool = pool
        self._allow_empty = allow_empty
        self._dry_run = dry_run
        from poolctl.config import Draft

        files: Sequence[str] = ()
        try:
            files = Client(pool.socket).ping().files
            self.supervised = True
        except NoSupervisor:
            self.supervised = False
        self.draft = Draft([*(files or pool.files)], os.environ)
        self.warnings: list[str] = []
        self.now = load(PoolRef(self.draft.files, pool.directory), allow_empty=True)

    def filter_names_by_files(self, names: Sequence[str]) -> list[str]:
        """Filter `names`: return the names of servers in the files, and add a warning about each other name."""
        why = "is not in any file: nothing to write (poolctl add --save writes it)"
        self.warnings += [f"{name} {why}" for name in names if self.draft.entry(name) is None]
        return [name for name in names if self.draft.entry(name) is not None]

    def scale_in_draft(self, names: Sequence[str], workers: int) -> None:
        """Set the number of workers of the named servers in `self.draft`, the new content of the files."""
        unchanged = {server.name for server in self.now if server.workers == workers}
        for name in self.filter_names_by_files(names):
            if name not in unchanged:
                self.draft.scale(name, workers)

    def set_disabled_in_draft(self, names: Sequence[str], disabled: bool) -> None:
        """Disable the named servers in `self.draft`, the files' new content; enable them if `disabled` is false."""
        unchanged = {server.name for server in self.now if server.disabled == disabled}
        for name in self.filter_names_by_files(names):
            if name in unchanged:
                continue
            if disabled:
                self.draft.set(name, ("disabled",), True)
            else:
                self.draft.reset(name, "disabled", False)

    def remove_in_draft(self, names: Sequence[str]) -> None:
        """Remove the servers from `self.draft`, the new content of the files. Skip servers that are in no file."""
        for name in names:
            if self.draft.entry(name) is not None:
                self.draft.remove(name)

    def validate_draft(self) -> None:
        """Validate the draft. Raises PoolValidateError if it is invalid.

        Raises Failure with exit code 2 if a file is not TOML, 5 if no server is left, 7 if a file is not writable.
        """
        if instructions := self.draft.manual_changes():
            raise Failure(self._refusal(instructions))
        config = self.draft.load_validated()
        if config.is_empty and not self._allow_empty:
            raise Failure(no_server_outcome(self.pool))
        for path in self.draft.texts():
            directory = os.path.dirname(os.path.realpath(path))
            if not os.access(directory, os.W_OK):
                message = f"{relative_to_cwd(path)} cannot be written"
                hint = f"fix the permissions of {directory}: a file is replaced as a whole"
                raise Failure(Outcome.failed(exit_codes.NOT_PERMITTED, message, hint))

    def _refusal(self, instructions: Sequence[Problem]) -> Outcome:
        """The error outcome for files that are not TOML, with the changes to make by hand."""
        hint = "make these changes by hand" + (", then run poolctl reload" if self.supervised else "")
        if any(MASK in instruction.message for instruction in instructions):
            hint += f" ({MASK} stands for a secret)"
        first = error(
            exit_codes.USAGE, "--save changes TOML files only: nothing was changed, live or in a file", hint
        )
        others = [
            replace(ErrorEntry.of(instruction), code=first.code, error=first.error)
            for instruction in instructions
        ]
        return Outcome(errors=[first, *others], exit_code=exit_codes.USAGE)

    def apply_and_write(self, live: Callable[[], Outcome]) -> Outcome:
        """Check the new files, call `live` to change the running servers, and write the files; return the outcome.

        For a dry run, only check the new files, and return the difference.
        """
        self.validate_draft()
        if self._dry_run:
            difference = self.draft.difference()
            code = exit_codes.NOT_AS_DESIRED if difference else exit_codes.DONE
            extra = {"difference": difference}
            return Outcome(text=difference, exit_code=code, warnings=self.warnings, extra=extra)
        outcome = live()
        outcome.warnings += self.warnings
        return self._write_and_report(outcome) if outcome.exit_code in _SAVED_EXIT_CODES else outcome

    def _write(self) -> None:
        """Write the draft. If a file was edited in the meantime, apply the change to the new text and retry."""
        from poolctl.config import FileChanged

        for _ in range(_ATTEMPTS):
            try:
                self.draft.write()
            except FileChanged:
                self.draft = self.draft.rebase()
                self.draft.load_validated()
            else:
                return
        self.draft.write()

    def _write_and_report(self, outcome: Outcome) -> Outcome:
        from poolctl.config import FileChanged

        try:
            self._write()
        except (FileChanged, PoolValidateError, KeyError) as changed:
            message = "the file has been changed meanwhile"
            if isinstance(changed, FileChanged):
                message = str(changed)
            hint = "nothing was written; check the file, then repeat the command"
            _fail(outcome, exit_codes.CONFLICT, message, hint)
        except OSError as failure:
            code = exit_codes.NOT_PERMITTED if isinstance(failure, PermissionError) else exit_codes.FAILED
            where = relative_to_cwd(str(failure.filename or ", ".join(self.draft.texts())))
            hint = "the live change lasts until the next reload"
            _fail(outcome, code, f"cannot write {where}: {failure.strerror}", hint)
        if outcome.errors and not self.supervised:
            outcome.message = ""  # nothing was changed
        saved = outcome.extra["saved"] = self.draft.written
        words = ", ".join(map(relative_to_cwd, saved))
        line = f"wrote {words}" if saved else "" if outcome.errors else "the files have this change already"
        outcome.message = "\n".join(part for part in (outcome.message, line) if part)
        return outcome


def _fail(outcome: Outcome, exit_code: int, message: str, hint: str) -> None:
    outcome.errors.append(error(exit_code, message, hint))
    outcome.exit_code = exit_code


def count_text(done: Sequence[bool], words: str) -> str:
    """A line such as `2 of 3 servers disabled`: the number of true values in `done`, then `words`."""
    return f"{server_count_text(sum(done), len(done))} {words}"
