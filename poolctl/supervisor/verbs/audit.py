"""The audit trail: each command that changes the pool is recorded, with its author and its outcome."""

from __future__ import annotations

import asyncio
import pwd
import time
from collections.abc import Awaitable, Callable
from typing import Any

from poolctl.control.answers import Result
from poolctl.control.server import Request
from poolctl.core.events import caused_by
from poolctl.exit_codes import USAGE
from poolctl.monitor.event_queue import Events
from poolctl.selection.selector import Selector, SelectorError
from poolctl.values import Table

from .verb import NothingMatched

AUDITED = frozenset(
    {
        "start", "stop", "restart", "reload", "scale", "drain", "undrain", "enable", "disable", "add", "remove",
        "upgrade",
    }
)  # fmt: skip
# Recorded with their values; the others may hold secrets, such as an environment.
_RECORDED = ("timeout", "wait", "deps", "kill", "workers", "all")

Work = Callable[[], Awaitable[Result]]


class Audit:
    """Records commands among the pool's events."""

    def __init__(self, events: Events) -> None:
        self._events = events

    async def watched(self, request: Request, selector: Selector, options: Table, work: Work) -> Result:
        """The result of the command, which is recorded at its beginning and at its end, whatever that is."""
        if request.verb not in AUDITED or options.get("dry_run"):
            return await work()
        by = peer(request)
        message = " ".join([request.verb, *_words(selector), *_details(request.verb, options)])
        self._record(request.verb, message, by, selection=_given(selector), options=_recorded(options))
        begun, outcome = time.monotonic(), _Outcome()
        try:
            with caused_by(message, by):
                result = await work()
            outcome.of(result)
            return result
        except NothingMatched as nothing:
            outcome.of(nothing.result)
            raise
        except SelectorError as wrong:
            outcome.code, outcome.problem = USAGE, wrong.message
            raise
        except asyncio.CancelledError:
            outcome.code, outcome.problem = None, "the client disconnected"
            raise
        finally:
            word = "done" if outcome.code == 0 else "abandoned" if outcome.code is None else "failed"
            self._record(
                f"{request.verb} {word}",
                message,
                by,
                cause=outcome.problem,
                exit_code=outcome.code,
                servers=outcome.servers,
                duration_seconds=round(time.monotonic() - begun, 3),
            )

    def _record(self, event: str, message: str, by: Table, **more: Any) -> None:
        self._events.record("audit", event, message=message, by=by, **more)


class _Outcome:
    """The outcome of a command; `code` is None when its client has disconnected."""

    def __init__(self) -> None:
        self.code: int | None = 1
        self.problem = "an internal error of the supervisor"
        self.servers: list[str] = []

    def of(self, result: Result) -> None:
        self.code = result.exit_code
        self.problem = result.errors[0].message.partition("\n")[0] if result.errors else ""
        self.servers = [item.name for item in result.items]


def peer(request: Request) -> Table:
    """The client's uid and pid as reported by the kernel, its user's name, and its command."""
    found: Table = {"uid": request.uid, "pid": request.pid, "user": _user(request.uid)}
    try:
        with open(f"/proc/{request.pid}/comm", encoding="utf-8", errors="replace") as file:
            found["command"] = file.read().rstrip("\n")
    except OSError:
        pass
    return found | _in_the_name_of(request.body.get("by"))


def _in_the_name_of(by: Any) -> Table:
    """The person behind a client, as that says: the dashboard names its browser's address."""
    if not isinstance(by, dict):
        return {}
    return {key: by[key][:200] for key in ("command", "address") if isinstance(by.get(key), str) and by[key]}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _words(selector: Selector) -> list[str]:
    given = _given(selector)
    targets = given.pop("targets", [])
    words = [f"--{key} {each}" for key, values in given.items() if key != "not" for each in values]
    return [*targets, *words, *(["--not"] if "not" in given else [])]


def _given(selector: Selector) -> Table:
    return {key: value for key, value in selector.to_dict().items() if value and key != "allow_empty"}


def _details(verb: str, options: Table) -> list[str]:
    everything = ["--all"] if options.get("all") is True else []
    if verb == "scale":
        return [*everything, str(options.get("workers"))]
    if everything:
        return everything
    server = options.get("server")
    return [str(server.get("name", ""))] if verb == "add" and isinstance(server, dict) else []


def _recorded(options: Table) -> Table:
    return {key: options[key] for key in _RECORDED if options.get(key) is not None}
