"""The table of the verbs, and how a request becomes an answer."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module

from poolctl.control.answers import PROTOCOL, ErrorEntry, PingResult, Result
from poolctl.control.server import Progress, Request
from poolctl.core.core import Core
from poolctl.exit_codes import USAGE
from poolctl.monitor.event_queue import Events
from poolctl.selection.selector import Selector, SelectorError
from poolctl.values import Table, Value

from ..active_configuration import ActiveConfiguration
from . import lifecycle, reading
from .audit import Audit
from .start_checks import TooManyOpenFiles
from .verb import Daemon, NothingMatched, Verb, VerbContext, match

_PACKAGE = __package__ or ""
_SHAPE = "objects, with timeout in seconds and env as a table"
_SHAPES = {"timeout": (int, float), "env": (dict,)}


class Verbs:
    """The pool as the control socket sees it."""

    def __init__(
        self,
        core: Core,
        events: Events,
        daemon: Daemon,
        configuration: ActiveConfiguration,
    ) -> None:
        self._daemon = daemon
        self._core = core
        self.used = False
        self._context = VerbContext(core, events, daemon, configuration)
        self._is_complete = False
        self._audit = Audit(events)
        self._verbs: dict[str, Verb] = {
            **reading.verbs(self._context),
            **lifecycle.verbs(self._context),
            "routes": _no_gateway,
            "hosts": _no_gateway,
        }

    def complete(self) -> None:
        """Load the verbs that no start needs; a request for one of them loads them before."""
        if not self._is_complete:
            self._is_complete = True
            for name in modules():
                module = import_module(f"poolctl.supervisor.{name}")
                if hasattr(module, "verbs"):
                    self._verbs = module.verbs(self._context) | self._verbs

    def add(self, name: str, verb: Verb) -> None:
        """Add another verb."""
        self._verbs[name] = verb

    async def handle(self, request: Request, progress: Progress) -> Value:
        """The answer to one request."""
        self.used = True
        if request.verb == "ping":
            return PingResult.extending(self._daemon.identity())
        if not self._knows(request.verb):
            known = ", ".join(sorted([*self._verbs, "ping"]))
            message = f"this supervisor does not know {request.verb!r} (protocol {PROTOCOL})"
            return _usage_error(message, f"it knows: {known}")
        try:
            options = _options(request.body)
            selector = Selector.from_dict(request.body.get("selector") or {})
            work = partial(self.perform, request.verb, selector, options, progress)
            return await self._audit.watched(request, selector, options, work)
        except SelectorError as wrong:
            return _usage_error(wrong.message, wrong.hint)
        except NothingMatched as nothing:
            return nothing.result
        except TooManyOpenFiles as refused:
            # A supervisor without servers ends: it would keep the limit that it was started with.
            if not self._core.registry.unused:
                return refused.result
            return refused.result.but(ended=True, keeper_pid=self._daemon.shut_down())

    async def perform(self, verb: str, selector: Selector, options: Table, progress: Progress) -> Result:
        """The result of one verb. Raises SelectorError for wrong options, NothingMatched."""
        assert self._knows(verb)
        await match(self._core, selector)
        return await self._verbs[verb](selector, options, progress)

    def end(self) -> None:
        """End the streams of events, because the supervisor ends."""
        self._context.over.set()

    def _knows(self, verb: str) -> bool:
        if verb not in self._verbs:
            self.complete()
        return verb in self._verbs


def _usage_error(message: str, hint: str) -> Result:
    error = ErrorEntry(code=USAGE, error="ErrorUsage", message=message, hint=hint)
    return Result(errors=(error,), exit_code=USAGE)


def _options(body: Table) -> Table:
    """The command's options. Raises SelectorError for a body of another shape than the protocol's."""
    options = body.get("options") or {}
    if not isinstance(options, dict) or not isinstance(body.get("selector") or {}, dict):
        raise SelectorError("selector and options must be objects", hint=_SHAPE)
    for name, kinds in _SHAPES.items():
        if options.get(name) is not None and not isinstance(options[name], kinds):
            raise SelectorError(f"{name} is {options[name]!r}", hint=_SHAPE)
    return options


def modules() -> list[str]:
    """The files of this package, by their names below `poolctl.supervisor`."""
    paths = import_module(_PACKAGE).__path__
    names = {name.removesuffix(".py") for path in paths for name in os.listdir(path) if name.endswith(".py")}
    return [f"verbs.{name}" for name in sorted(names - {"__init__"})]


async def _no_gateway(selector: Selector, options: Table, progress: Progress) -> Result:
    """No route and no host: this version has no gateway."""
    return Result()
