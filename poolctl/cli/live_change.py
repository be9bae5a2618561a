"""A live change of the selected servers, which --save also writes to the files.

The change to the files is checked before anything is done, and written afterwards.
"""

from __future__ import annotations

import os

from poolctl.cli.command_line import CommandRequest, saves
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.render import from_here
from poolctl.cli.supervisor_requests import ask, selected
from poolctl.control.answers import About, ErrorEntry, Item, Result
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

# A change that has been made, if not for every server, or not in time, is worth keeping.
MADE = (DONE, FAILED, TIMED_OUT)

# So many other commands at most may come between.
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
    """Change the selected servers; returns when the change has been made, and with --save written.

    `report` is the line about the servers afterwards. `write` makes the change in the files, None for a state that no
    file has a key for. With `works_offline` it is a change of the files alone where no supervisor runs.
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
    request.selector(), request.options()  # a wrong one is reported before anything is read
    files = WriteBack(pool, request)
    items, running = _selected(files, request, pool, works_offline=works_offline, removes=removes)
    write(files, [item.name for item in items])
    return files.finish(live if running else lambda: _changed_files(files, items, report, removes=removes))


def _require_selection(request: CommandRequest, pool: PoolRef) -> None:
    """Raises UsageError without a selection and without --all: these commands never mean all by default."""
    if not request.selector().selects_all:
        if request.get("all"):
            raise UsageError(f"{request.verb}: --all and a selection cannot be combined")
    elif not request.get("all"):
        needed = selection_needed(request.verb, _count_servers(request, pool))
        raise UsageError(needed.message, hint=needed.hint)


def _count_servers(request: CommandRequest, pool: PoolRef) -> int | None:
    """How many servers the pool has; None when neither a supervisor nor the files can say it."""
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
    """The selected servers, and whether the change is one of a running pool. Failure for a bad selection."""
    from poolctl.cli.offline import select_from_files

    if not files.supervised:
        if not works_offline:
            raise NoSupervisor
        return select_from_files(request, pool), False
    chosen = ask(CommandRequest("list", request.values), pool, "list")
    if chosen.exit_code == NOTHING_MATCHED and removes:
        # A server that was removed from the running pool before can still be taken out of the files.
        return select_from_files(request, pool), False
    if chosen.exit_code:
        raise Failure(Outcome.of(chosen))
    return chosen.items, True


def _changed_files(
    files: WriteBack, items: Sequence[Item], report: Callable[[Result], str], *, removes: bool
) -> Outcome:
    """The outcome of a change of the files alone: the servers as they will be, none of them running."""
    unchanged: list[str] = []
    if not removes:
        from poolctl.control.answers import item

        before = {each.name: each.state for each in items}
        items = [item(server) for server in files.draft.check() if server.name in before]
        unchanged = [each.name for each in items if each.state == before[each.name]]
    return Outcome(items, message=_line(Result(items=tuple(items), unchanged=tuple(unchanged)), report))


def _line(result: Result, report: Callable[[Result], str]) -> str:
    if result.items:
        return report(result)
    return "" if result.exit_code else "no server selected"


class WriteBack:
    """The files of a pool, what they say, and what they are to say."""

    def __init__(self, pool: PoolRef, request: CommandRequest) -> None:
        """Read them. PoolValidateError for files that cannot be read, Failure (5) for invalid ones."""
        self.pool = pool
        self.request = request
        from poolctl.config import Draft

        about = _about(pool)
        self.supervised = about is not None
        files = about.files if about is not None and about.files else pool.files
        self.draft = Draft([*files], os.environ)
        self.warnings: list[str] = []
        self.now = self._loaded()

    def _loaded(self) -> Configuration:
        from poolctl.cli.offline import load

        return load(PoolRef(self.draft.files, self.pool.directory), allow_empty=True)

    def known(self, names: Sequence[str]) -> list[str]:
        """Those of the servers that are in the files; of the others a warning."""
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
        """Give servers a number of workers."""
        servers = {server.name: server for server in self.now}
        for name in self.known(names):
            if name not in servers or servers[name].workers != workers:
                self.draft.scale(name, workers)

    def disable(self, names: Sequence[str], disabled: bool) -> None:
        """Disable servers, or enable them."""
        servers = {server.name: server for server in self.now}
        for name in self.known(names):
            if name not in servers or servers[name].disabled != disabled:
                if disabled:
                    self.draft.set(name, ("disabled",), True)
                else:
                    self.draft.reset(name, "disabled", False)

    def remove(self, names: Sequence[str]) -> None:
        """Take servers out; one that was added live is in no file, and need not be."""
        for name in names:
            if self.draft.entry(name) is not None:
                self.draft.remove(name)

    def check(self) -> Configuration:
        """The changed configuration.

        Failure with 2 for files that are not TOML, 5 for an invalid result, 7 for files that are not writable.
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
        """The refusal of changes to other files than TOML ones, with what people have to write there."""
        from poolctl.config import MASK

        hint = "make these changes by hand" + (", then run poolctl reload" if self.supervised else "")
        if any(MASK in each.message for each in instructions):
            hint += f" ({MASK} stands for a secret)"
        first = error(USAGE, "--save changes TOML files only: nothing was changed, live or in a file", hint)
        others = [ErrorEntry.of(each).but(code=first.code, error=first.error) for each in instructions]
        return Outcome(errors=[first, *others], exit_code=USAGE)

    def finish(self, live: Callable[[], Outcome]) -> Outcome:
        """Check, change what runs, write. A dry run only shows what would be written."""
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
        """Write the change; concurrent edits by others are kept, and ours is applied to them."""
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
            outcome.message = ""  # nothing has been done
        saved = outcome.extra["saved"] = self.draft.written
        words = ", ".join(map(from_here, saved))
        line = f"wrote {words}" if saved else "" if outcome.errors else "the files have this change already"
        outcome.message = "\n".join(part for part in (outcome.message, line) if part)
        return outcome


def _about(pool: PoolRef) -> About | None:
    """The supervisor's description of itself; None when there is none."""
    try:
        return Client(pool.socket).ping()
    except NoSupervisor:
        return None


def _fail(outcome: Outcome, exit_code: int, message: str, hint: str) -> None:
    outcome.errors.append(error(exit_code, message, hint))
    outcome.exit_code = exit_code
