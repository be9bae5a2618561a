"""A live change of the selected servers, which --save also writes to the files."""

from __future__ import annotations

from poolctl.cli.command_request import CommandRequest, saves
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.remote import ask, selected
from poolctl.control.client import NoSupervisor
from poolctl.errors import ControlError, PoolError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.selection.selector import selection_needed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from poolctl.cli.changes.write_back import WriteBack
    from poolctl.cli.pool_ref import PoolRef
    from poolctl.control.answers import Item


def change(
    request: CommandRequest,
    report: Callable[[Sequence[Item]], str],
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
        result = ask(request, pool, more=options)
        return Outcome.of(result, _line(result.items, report, failed=bool(result.exit_code)))

    if not save or write is None:
        outcome = live()
        if save:
            outcome.warnings.append(
                f"{request.verb} is a live state that no file stores: nothing was written"
            )
        return outcome
    request.selector(), request.options()  # a wrong one is reported before anything is read
    from poolctl.cli.changes.write_back import WriteBack

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
    files: WriteBack, items: Sequence[Item], report: Callable[[Sequence[Item]], str], *, removes: bool
) -> Outcome:
    """The outcome of a change of the files alone: the servers as they will be, none of them running."""
    if not removes:
        from poolctl.control.messages import item

        names = {each.name for each in items}
        items = [item(server) for server in files.draft.check() if server.name in names]
    return Outcome(items, message=_line(items, report))


def _line(items: Sequence[Item], report: Callable[[Sequence[Item]], str], *, failed: bool = False) -> str:
    if items:
        return report(items)
    return "" if failed else "no server selected"
