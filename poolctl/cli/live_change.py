"""`poolctl scale`, `drain`, `undrain`, `enable`, `disable` and `remove`: live changes of the selected servers."""

from __future__ import annotations

from poolctl.cli.outcome import Failure, Item, Outcome, UsageError
from poolctl.cli.plural import servers
from poolctl.cli.pool_ref import find_place
from poolctl.cli.remote import ask, selected
from poolctl.cli.request import Request, saves
from poolctl.config import MOST_WORKERS
from poolctl.control.client import NoSupervisor
from poolctl.errors import ControlError, PoolError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.pool.select import selection_needed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from poolctl.cli.pool_ref import Place
    from poolctl.cli.write_back import Files

# These are states of what runs; no file has a key for them.
UNWRITTEN = ("drain", "undrain")
# Without a supervisor these are changes of the file.
OF_FILES = ("enable", "disable", "remove")


def perform(request: Request) -> Outcome:
    """Change the selected servers; returns when the change has been made, and with --save written."""
    save = saves(request)
    more: dict[str, Any] = {}
    if request.verb == "scale":
        request, more["workers"] = _scaled(request)
    place = find_place(request)
    _require_selection(request, place)
    if save and request.verb not in UNWRITTEN:
        return _saved(request, place, more)
    outcome = _live(request, place, more)
    if save:
        outcome.warnings.append(f"{request.verb} is nothing that a file says: nothing was written")
    return outcome


def _require_selection(request: Request, place: Place) -> None:
    """Raises UsageError without a selection and without --all: these commands never mean all by default."""
    if not request.selector().selects_all:
        if request.get("all"):
            raise UsageError(f"{request.verb}: --all and a selection exclude each other")
    elif not request.get("all"):
        needed = selection_needed(request.verb, _count_servers(request, place))
        raise UsageError(needed.message, hint=needed.hint)


def _count_servers(request: Request, place: Place) -> int | None:
    """How many servers the pool has; None when neither a supervisor nor the files can say it."""
    asked = Request("list", {"config": request.get("config"), "pool": request.get("pool"), "quiet": True})
    try:
        return len(selected(asked, place).items)
    except (Failure, PoolError, ControlError):
        return None


def _live(request: Request, place: Place, more: dict[str, Any]) -> Outcome:
    outcome = ask(request, place, more=more)
    outcome.message = _line(request, outcome, more.get("workers", 0))
    return outcome


def _saved(request: Request, place: Place, more: dict[str, Any]) -> Outcome:
    request.selector(), request.options()  # a wrong one is said before anything is read
    from poolctl.cli.write_back import Files

    files = Files(place, request)
    items, running = _chosen(files, request, place)
    names = [str(item["name"]) for item in items]
    if request.verb == "scale":
        files.scale(names, more["workers"])
    elif request.verb == "remove":
        files.remove(names)
    else:
        files.disable(names, request.verb == "disable")
    return files.finish(lambda: _live(request, place, more) if running else _in_files(files, request, items))


def _chosen(files: Files, request: Request, place: Place) -> tuple[list[Item], bool]:
    """The selected servers, and whether the change is one of what runs. Failure for a bad selection."""
    from poolctl.cli.offline import select_from_files

    if not files.supervised:
        if request.verb not in OF_FILES:
            raise NoSupervisor
        return select_from_files(request, place), False
    chosen = ask(Request("list", request.values), place, "list")
    if chosen.exit_code == NOTHING_MATCHED and request.verb == "remove":
        # What was removed from what runs before can still be taken out of the files.
        return select_from_files(request, place), False
    if chosen.exit_code:
        raise Failure(chosen)
    return chosen.items, True


def _in_files(files: Files, request: Request, items: list[Item]) -> Outcome:
    """What a change of the files alone comes to: the servers as they will be, none of them running."""
    if request.verb != "remove":
        from poolctl.control.messages import item

        names = {str(each["name"]) for each in items}
        items = [item(server) for server in files.draft.check() if server.name in names]
    outcome = Outcome(items)
    outcome.message = _line(request, outcome, 0)
    return outcome


def _scaled(request: Request) -> tuple[Request, int]:
    """The request without its last word, which is the number. UsageError for what is none."""
    *targets, last = request.get("targets") or [""]
    if not last:
        raise UsageError("scale: how many workers?", hint="poolctl scale web 4")
    if not (last.isascii() and last.isdigit() and 1 <= int(last[:9]) <= MOST_WORKERS):
        hint = (
            "poolctl stop ends all of them"
            if last == "0"
            else "the last word is the number: poolctl scale web 4"
        )
        raise UsageError(f"scale: {last!r} is not a number from 1 to {MOST_WORKERS}", hint=hint)
    return Request("scale", {**request.values, "targets": targets}), int(last)


def _line(request: Request, outcome: Outcome, workers: int) -> str:
    items = outcome.items
    if not items:
        return "" if outcome.exit_code else "no server selected"
    if request.verb == "remove":
        return "\n".join(f"removed {item.get('name')} {item.get('bind')}" for item in items)
    if request.verb == "scale":
        done = sum(item.get("workers") == workers for item in items)
        return f"{servers(done, len(items))} scaled to {workers} worker{'s' * (workers > 1)}"
    if request.verb == "enable":
        return f"{servers(len(items))} enabled, {_count(items, 'ready')} ready"
    if request.verb == "disable":
        done = sum(item.get("state") == "disabled" for item in items)
        return f"{servers(done, len(items))} disabled"
    if request.verb == "drain":
        done = sum(item.get("state") == "draining" for item in items)
        return f"{servers(done, len(items))} out of rotation"
    return f"{servers(_count(items, 'ready'), len(items))} in rotation"


def _count(items: list[Item], key: str) -> int:
    return sum(bool(item.get(key)) for item in items)
