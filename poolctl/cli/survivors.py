"""A pool whose keeper and supervisor have been killed: what still serves is shown, and can be ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from poolctl.cli.outcome import Failure, Item, Outcome
from poolctl.cli.plural import servers as counted
from poolctl.control.messages import item
from poolctl.errors import PoolError
from poolctl.runners.survivors import Survivor, are_there, find
from poolctl.supervisor.leftovers import forget_wanted, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolctl.cli.pool_ref import Place
    from poolctl.cli.request import Request
    from poolctl.config import ServerConfig

_STOP_SECONDS = 10.0
_KILL_SECONDS = 5.0


def items_of(servers: Iterable[ServerConfig], place: Place) -> list[Item]:
    """The servers as they are: stopped, or still served by processes that nobody manages."""
    if not are_there(place.directory):
        return [item(server) for server in servers]
    found = _find(place)
    items = []
    for server in servers:
        its = [each for each in found if each.said["server"] == server.name and _runs_as(each, server)]
        items.append(_running(server, its) if its else item(server))
    for survivor in found:
        survivor.close()
    return items


def stop(request: Request, place: Place) -> Outcome | None:
    """End the selected servers that still serve; None when there are none."""
    everything = request.selector().selects_all
    if not are_there(place.directory):
        forget_wanted(place.directory, None if everything else _names(request, place))
        remove_leftovers(place.directory)
        return None
    found = _find(place)
    items = _items_before(request, place, found, everything=everything)
    names = {str(each["name"]) for each in items}
    forget_wanted(place.directory, None if everything else names)
    chosen = [each for each in found if everything or each.said["server"] in names]
    warnings = _end(chosen, request.seconds("timeout") or _STOP_SECONDS)
    for survivor in found:
        survivor.close()
    if everything:
        remove_leftovers(place.directory)
    ended = {str(survivor.said["server"]) for survivor in chosen} - {""}
    items = [{**each, **_AT_REST} if each["name"] in ended else each for each in items]
    message = f"{counted(len(ended))} stopped, which had lost keeper and supervisor"
    return Outcome(items, warnings=warnings, message=message)


_AT_REST = {"state": "stopped", "ready": False, "health": "unknown", "pids": [], "uptime_seconds": 0.0}


def _names(request: Request, place: Place) -> set[str]:
    from poolctl.cli.offline import select_from_files

    return {str(each["name"]) for each in select_from_files(request, place)}


def _find(place: Place) -> list[Survivor]:
    found, pipes = find(place.directory)
    pipes.close()
    return found


def _runs_as(survivor: Survivor, server: ServerConfig) -> bool:
    """Whether it runs as the server's user: what it says of itself may be a lie."""
    from poolctl.runners.spec import user_id

    try:
        return survivor.uid == user_id(server)
    except PoolError:  # there is no such user any more
        return False


def _running(server: ServerConfig, its: list[Survivor]) -> Item:
    ready = [each.said.get("ready_at") for each in its if not server.job]
    since = [float(at) for at in ready if at is not None]
    return item(
        server,
        state="running" if since else "starting",
        ready=bool(since),
        health="ok" if since else "unknown",
        pids=sorted(each.pid for each in its),
        uptime_seconds=time.monotonic() - min(since) if since else 0.0,
    )


def _items_before(request: Request, place: Place, found: list[Survivor], *, everything: bool) -> list[Item]:
    from poolctl.cli.offline import select_from_files

    try:
        return select_from_files(request, place)
    except (Failure, PoolError):
        if not everything:
            raise
        # A file that is broken by now keeps nobody from stopping what was started from it.
        return [{"name": name} for name in dict.fromkeys(str(each.said["server"]) for each in found) if name]


def _end(chosen: list[Survivor], limit_seconds: float) -> list[str]:
    """End them within the limit, or kill them; a warning for each that had to be killed."""
    for survivor in chosen:
        survivor.ask_to_end()
    deadline = time.monotonic() + limit_seconds
    late = [each for each in chosen if not each.await_end(max(0.0, deadline - time.monotonic()))]
    for survivor in late:
        survivor.kill()
        survivor.await_end(_KILL_SECONDS)
    return [f"{each.said['server'] or 'unknown'}: pid {each.pid} had to be killed" for each in late]
