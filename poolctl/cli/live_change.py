"""Changes the selected servers of the running pool, and with --save also the files.

The change of the files is checked first, and written after the live change.
"""

from __future__ import annotations

import os
from dataclasses import replace

from poolctl.cli.command_line import CommandRequest, saves
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import from_here
from poolctl.cli.supervisor_requests import ask, selected
from poolctl.control.answers import About, ErrorEntry, Item, Result, item
from poolctl.control.client import Client, NoSupervisor
from poolctl.errors import ControlError, PoolError, PoolValidateError
from poolctl.exit_codes import (
    CONFLICT,
    DONE,
    FAILED,
    INVALID_CONFIGURATION,
    NOT_AS_DESIRED,
    NOT_PERMITTED,
    NOTHING_MATCHED,
    TIMED_OUT,
    USAGE,
)
from poolctl.selection.selector import selection_needed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from poolctl.config import Configuration, Problem

# A change that was made is saved, even if not for every server or not in time.
MADE = (DONE, FAILED, TIMED_OUT)

# Maximum number of concurrent edits by other commands.
ATTEMPTS = 20


def change(
    request: CommandRequest,
    report: Callable[[Result], str],
    write: Callable[[WriteBack, list[str]], None] | None = None,
    *,
    options: Mapping[str, object] | None = None,
    works_offline: bool = False,
    removes: bool = False,
) -> Outcome:
    """Change the selected servers; returns when the change is made, and with --save written.

    `report` returns the final line about the servers. `write` applies the change to the files, and is None for a
    state without a key in files. With `works_offline` only the files are changed if no supervisor runs.
    """
    save = saves(request)
    pool = find_pool(request)
    _require_selection(request, pool)

    def live() -> Outcome:
        more = {**(options or {}), **({"saves": True} if save and write is not None else {})}
        result = ask(request, pool, more=more)
        return Outcome.of(result, _line(result, report))

    if not save or write is None:
        outcome = live()
        if save:
            outcome.warnings.append(
                f"{request.verb} is a live state that no file stores: nothing was written"
            )
        return outcome
    request.selector(), request.options()  # a wrong value is reported before anything is read
    files = WriteBack(pool, request)
    items, running = _selected(files, request, pool, works_offline=works_offline, removes=removes)
    write(files, [item.name for item in items])
    return files.finish(live if running else lambda: _changed_files(files, items, report, removes=removes))


def _require_selection(request: CommandRequest, pool: PoolRef) -> None:
    """Raises UsageError without a selection or --all: these commands never apply to all servers by default."""
    if not request.selector().selects_all:
        if request.get("all"):
            raise UsageError(f"{request.verb}: --all and a selection cannot be combined")
    elif not request.get("all"):
        needed = selection_needed(request.verb, _count_servers(request, pool))
        raise UsageError(needed.message, hint=needed.hint)


def _count_servers(request: CommandRequest, pool: PoolRef) -> int | None:
    """The number of servers in the pool; None if neither a supervisor nor the files are readable."""
    asked = CommandRequest(
        "list", {"config": request.get("config"), "pool": request.get("pool"), "quiet": True}
    )
    try:
        return len(selected(asked, pool).items)
    except (Failure, PoolError, ControlError):
        return None


def _selected(
    files: WriteBack, request: CommandRequest, pool: PoolRef, *, works_offline: bool, removes: bool
) -> tuple[Sequence[Item], bool]:
    """The selected servers, and whether a running pool is changed. Failure for a bad selection."""
    from poolctl.cli.offline import select_from_files

    if not files.supervised:
        if not works_offline:
            raise NoSupervisor
        return select_from_files(request, pool), False
    chosen = ask(CommandRequest("list", request.values), pool, "list")
    if chosen.exit_code == NOTHING_MATCHED and removes:
        # A server already removed from the running pool can still be removed from the files.
        return select_from_files(request, pool), False
    if chosen.exit_code:
        raise Failure(Outcome.of(chosen))
    return chosen.items, True


def _changed_files(
    files: WriteBack, items: Sequence[Item], report: Callable[[Result], str], *, removes: bool
) -> Outcome:
    """The outcome of a change of the files alone: the changed servers, all stopped."""
    unchanged: list[str] = []
    if not removes:
        before = {each.name: each.state for each in items}
        items = [item(server) for server in files.draft.check() if server.name in before]
        unchanged = [each.name for each in items if each.state == before[each.name]]
    return Outcome(items, message=_line(Result(items=tuple(items), unchanged=tuple(unchanged)), report))


def _line(result: Result, report: Callable[[Result], str]) -> str:
    if result.items:
        return report(result)
    return "" if result.exit_code else "no server selected"


class WriteBack:
    """The files of a pool, their configuration, and the changed draft."""

    def __init__(self, pool: PoolRef, request: CommandRequest) -> None:
        """Read the files. PoolValidateError for unreadable files, Failure (5) for invalid ones."""
        self.pool = pool
        self.request = request
        from poolctl.config import Draft

        about = _supervisor_facts(pool)
        self.supervised = about is not None
        files = about.files if about is not None and about.files else pool.files
        self.draft = Draft([*files], os.environ)
        self.warnings: list[str] = []
        self.now = self._loaded()

    def _loaded(self) -> Configuration:
        from poolctl.cli.offline import load

        return load(PoolRef(self.draft.files, self.pool.directory), allow_empty=True)

    def known(self, names: Sequence[str]) -> list[str]:
        """The servers that are in the files; warns about the others."""
        found = []
        for name in names:
            if self.draft.entry(name) is not None:
                found.append(name)
            else:
                self.warnings.append(
                    f"{name} is not in any file: nothing to write (poolctl add --save writes it)"
                )
        return found

    def scale(self, names: Sequence[str], workers: int) -> None:
        """Set the number of workers of servers."""
        servers = {server.name: server for server in self.now}
        for name in self.known(names):
            if name not in servers or servers[name].workers != workers:
                self.draft.scale(name, workers)

    def disable(self, names: Sequence[str], disabled: bool) -> None:
        """Disable or enable servers."""
        servers = {server.name: server for server in self.now}
        for name in self.known(names):
            if name not in servers or servers[name].disabled != disabled:
                if disabled:
                    self.draft.set(name, ("disabled",), True)
                else:
                    self.draft.reset(name, "disabled", False)

    def remove(self, names: Sequence[str]) -> None:
        """Remove servers; a server added live may be in no file."""
        for name in names:
            if self.draft.entry(name) is not None:
                self.draft.remove(name)

    def check(self) -> Configuration:
        """The changed configuration.

        Failure with exit code 2 for files other than TOML, 5 for an invalid result, 7 for files that are not writable.
        """
        if instructions := self.draft.by_hand():
            raise Failure(self._refused(instructions))
        config = self.draft.check()
        if config.is_empty and not self.request.get("allow_empty"):
            from poolctl.cli.offline import no_server

            raise Failure(Outcome(errors=[no_server(self.pool)], exit_code=INVALID_CONFIGURATION))
        for path in self.draft.texts():
            directory = os.path.dirname(os.path.realpath(path))
            if not os.access(directory, os.W_OK):
                hint = f"fix the permissions of {directory}: a file is replaced as a whole"
                raise Failure(Outcome.failed(NOT_PERMITTED, f"{from_here(path)} cannot be written", hint))
        return config

    def _refused(self, instructions: Sequence[Problem]) -> Outcome:
        """The refusal to change files other than TOML, with the lines that the user has to write there."""
        from poolctl.config import MASK

        hint = "make these changes by hand" + (", then run poolctl reload" if self.supervised else "")
        if any(MASK in each.message for each in instructions):
            hint += f" ({MASK} stands for a secret)"
        first = error(USAGE, "--save changes TOML files only: nothing was changed, live or in a file", hint)
        others = [replace(ErrorEntry.of(each), code=first.code, error=first.error) for each in instructions]
        return Outcome(errors=[first, *others], exit_code=USAGE)

    def finish(self, live: Callable[[], Outcome]) -> Outcome:
        """Check, change the running servers, write. A dry run only shows the change of the files."""
        self.check()
        if self.request.get("dry_run"):
            return self._shown()
        outcome = live()
        outcome.warnings += self.warnings
        if outcome.exit_code not in MADE:
            return outcome
        return self._written(outcome)

    def _shown(self) -> Outcome:
        difference = self.draft.difference()
        code = NOT_AS_DESIRED if difference else DONE
        return Outcome(
            text=difference, exit_code=code, warnings=self.warnings, extra={"difference": difference}
        )

    def _write(self) -> None:
        """Write the change on top of concurrent edits by others."""
        from poolctl.config import FileChanged

        for _ in range(ATTEMPTS):
            try:
                self.draft.write()
            except FileChanged:
                self.draft = self.draft.again()
                self.draft.check()
            else:
                return
        self.draft.write()

    def _written(self, outcome: Outcome) -> Outcome:
        from poolctl.config import FileChanged

        try:
            self._write()
        except (FileChanged, PoolValidateError, KeyError) as changed:
            hint = "nothing was written; check the file, then repeat the command"
            message = (
                str(changed) if isinstance(changed, FileChanged) else "the file has been changed meanwhile"
            )
            _fail(outcome, CONFLICT, message, hint)
        except OSError as failure:
            code = NOT_PERMITTED if isinstance(failure, PermissionError) else FAILED
            where = from_here(str(failure.filename or ", ".join(self.draft.texts())))
            _fail(
                outcome,
                code,
                f"cannot write {where}: {failure.strerror}",
                "the live change lasts until the next reload",
            )
        if outcome.errors and not self.supervised:
            outcome.message = ""  # nothing was changed
        saved = outcome.extra["saved"] = self.draft.written
        words = ", ".join(map(from_here, saved))
        line = f"wrote {words}" if saved else "" if outcome.errors else "the files have this change already"
        outcome.message = "\n".join(part for part in (outcome.message, line) if part)
        return outcome


def _supervisor_facts(pool: PoolRef) -> About | None:
    """The supervisor's description of itself; None without a supervisor."""
    try:
        return Client(pool.socket).ping()
    except NoSupervisor:
        return None


def _fail(outcome: Outcome, exit_code: int, message: str, hint: str) -> None:
    outcome.errors.append(error(exit_code, message, hint))
    outcome.exit_code = exit_code
