"""What the control socket can be asked: each verb selects, acts through the engine, waits, and reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from poolctl.control.messages import PROTOCOL, Document, error, result
from poolctl.control.server import Progress, Request
from poolctl.pool.select import Selector, SelectorError

from .configuration import Configuration
from .engine import Engine
from .lifecycle import Lifecycle
from .live import Live
from .reading import Reading
from .reload import Reload
from .selection import NothingMatched
from .upgrade import Upgrade

USAGE = 2
_SHAPE = "objects, with timeout in seconds and env as a table"
_SHAPES = {"timeout": (int, float), "env": (dict,)}

Verb = Callable[[Selector, Document, Progress], Awaitable[Document]]


class Verbs:
    """The pool as the control socket sees it.

    `about` is what `ping` says, `shut_down` ends the supervisor, `succeed` gives its place and the keeper's to others.
    """

    def __init__(
        self,
        engine: Engine,
        about: Callable[[], Document],
        shut_down: Callable[[], None],
        configuration: Configuration,
        succeed: Callable[[list[str], list[str]], None] = lambda keeper, supervisor: None,
    ) -> None:
        self._about = about
        self._shut_down = shut_down
        self.used = False
        reading = Reading(engine, about)
        lifecycle = Lifecycle(engine, self._end, configuration.environments)
        reload = Reload(engine, configuration).reload
        live = Live(engine, configuration, lifecycle.with_dependents)
        self._verbs: dict[str, Verb] = {
            "list": reading.listing,
            "show": reading.show,
            "status": reading.status,
            "wait": reading.wait,
            "start": lifecycle.start,
            "stop": lifecycle.stop,
            "restart": lifecycle.restart,
            "reload": reload,
            "scale": live.scale,
            "drain": live.drain,
            "undrain": live.undrain,
            "enable": live.enable,
            "disable": live.disable,
            "add": live.add,
            "remove": live.remove,
            "upgrade": Upgrade(configuration.files, reload, succeed).upgrade,
        }

    async def handle(self, request: Request, progress: Progress) -> Document:
        """The result document of one request."""
        self.used = True
        if request.verb == "ping":
            return result([], **self._about())
        if request.verb not in self._verbs:
            known = ", ".join(sorted([*self._verbs, "ping"]))
            message = f"this supervisor does not know {request.verb!r} (protocol {PROTOCOL})"
            return result([], [error(USAGE, "ErrorUsage", message, f"it knows: {known}")], exit_code=USAGE)
        try:
            options = _options(request.body)
            selector = Selector.from_dict(request.body.get("selector") or {})
            return await self.perform(request.verb, selector, options, progress)
        except SelectorError as wrong:
            return result([], [error(USAGE, "ErrorUsage", wrong.message, wrong.hint)], exit_code=USAGE)
        except NothingMatched as nothing:
            return nothing.document

    async def perform(self, verb: str, selector: Selector, options: Document, progress: Progress) -> Document:
        """The result of one verb. Raises SelectorError for wrong options, NothingMatched."""
        return await self._verbs[verb](selector, options, progress)

    def _end(self) -> int:
        """End the supervisor; the pid of the keeper, which ends after it."""
        self._shut_down()
        return int(self._about()["keeper_pid"])


def _options(body: Document) -> Document:
    """The command's options. Raises SelectorError for a body of another shape than the protocol's."""
    options = body.get("options") or {}
    if not isinstance(options, dict) or not isinstance(body.get("selector") or {}, dict):
        raise SelectorError("selector and options must be objects", hint=_SHAPE)
    for name, kinds in _SHAPES.items():
        if options.get(name) is not None and not isinstance(options[name], kinds):
            raise SelectorError(f"{name} is {options[name]!r}", hint=_SHAPE)
    return options
