"""What the control socket can be asked: each verb selects, acts through the engine, waits, and reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from poolctl.control.messages import PROTOCOL, Document, error, result
from poolctl.control.server import Progress, Request
from poolctl.pool.select import Selector, SelectorError, select

from .engine import Engine
from .entry import Entry
from .order import RESTART, START, STOP, TIMED_OUT, Order
from .reports import Reports, details, disabled, reporter
from .reports import late as late_as
from .waiting import until

USAGE, NOT_DESIRED, NOTHING_MATCHED = 2, 3, 4
MONITOR, PARAM = (1326, "ErrorPoolMonitor"), (1320, "ErrorParamEmpty")


class NothingMatched(Exception):
    """The selection is empty or names what is not there; carries the answer."""

    def __init__(self, document: Document) -> None:
        super().__init__("nothing matched")
        self.document = document


class Verbs:
    """The pool as the control socket sees it.

    `about` is what `ping` says, `shut_down` ends the supervisor, `environments` takes what a server's next workers are
    to see instead of the pool's own environment.
    """

    def __init__(
        self,
        engine: Engine,
        about: Document,
        shut_down: Callable[[], None],
        environments: dict[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._engine = engine
        self._environments = {} if environments is None else environments
        self._reports = Reports(engine)
        self._about = about
        self._shut_down = shut_down
        self.used = False

    async def handle(self, request: Request, progress: Progress) -> Document:
        """The result document of one request."""
        self.used = True
        verbs: dict[str, Callable[[Selector, Document, Progress], Awaitable[Document]]] = {
            "list": self.listing,
            "show": self.show,
            "status": self.status,
            "start": self.start,
            "stop": self.stop,
            "restart": self.restart,
            "wait": self.wait,
        }
        if request.verb == "ping":
            return result([], **self._about)
        verb = verbs.get(request.verb)
        if verb is None:
            known = ", ".join(sorted([*verbs, "ping"]))
            message = f"this supervisor does not know {request.verb!r} (protocol {PROTOCOL})"
            return result([], [error(USAGE, "ErrorUsage", message, f"it knows: {known}")], exit_code=USAGE)
        try:
            options = _options(request.body)
            selector = Selector.from_dict(request.body.get("selector") or {})
            return await verb(selector, options, progress)
        except SelectorError as wrong:
            return result([], [error(USAGE, "ErrorUsage", wrong.message, wrong.hint)], exit_code=USAGE)
        except NothingMatched as nothing:
            return nothing.document

    # Reading.

    async def listing(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """The selected servers as they are."""
        return result(self._reports.items(self._selected(selector)))

    async def show(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """The selected servers with their configuration, its origins, and what happened last."""
        entries = self._selected(selector)
        items = self._reports.items(entries)
        for document, entry in zip(items, entries, strict=True):
            document.update(details(entry, self._engine.runner.endpoints(entry.config.key)))
        return result(items)

    async def status(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Every selected server, and a summary; exit code 3 unless all that should run is ready."""
        entries = self._selected(selector)
        should_run = [entry for entry in entries if not entry.config.disabled and not entry.dismissed]
        counts: dict[str, int] = {}
        for entry in entries:
            counts[entry.state] = counts.get(entry.state, 0) + 1
        missing = [entry for entry in should_run if not entry.ready]
        summary = {
            **self._about,
            "servers": len(entries),
            "should_run": len(should_run),
            "ready": len(should_run) - len(missing),
            "states": counts,
        }
        errors = [entry.failure.to_dict() for entry in missing if entry.failure is not None]
        return result(
            self._reports.items(entries), errors, exit_code=NOT_DESIRED if missing else 0, summary=summary
        )

    # Lifecycle.

    async def start(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Start the selected servers and what they depend on; return when each is ready or has failed."""
        chosen = self._selected(selector)
        runnable = [entry for entry in chosen if not entry.config.disabled]
        deps = options.get("deps", True)
        needed = self._engine.closure(runnable, self._engine.dependencies) if deps else runnable
        all_of_them = [entry for entry in needed if not entry.config.disabled]
        order = Order(self._engine, START, all_of_them, lambda entry: entry.complete)
        for entry in all_of_them:
            if not (entry.wanted and entry.ready):
                self._engine.start(entry, ignore_dependencies=not deps)
        order.problems += [disabled(entry) for entry in chosen if entry.config.disabled and selector.targets]
        return await order.conclude(chosen, options, progress)

    async def restart(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Replace the selected servers, each when its replacement has answered; start those that do not run."""
        chosen = self._selected(selector)
        runnable = [entry for entry in chosen if not entry.config.disabled]
        order = Order(self._engine, RESTART, runnable, lambda entry: entry.complete)
        environment = options.get("env")
        for entry in runnable:
            if environment:
                self._environments[entry.name] = environment
            self._engine.restart(entry)
        order.problems += [disabled(entry) for entry in chosen if entry.config.disabled and selector.targets]
        return await order.conclude(chosen, options, progress)

    async def stop(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Stop the selected servers, what depends on them first; without a selection end the supervisor too."""
        chosen = self._selected(selector)
        everything = selector.selects_all
        deps = options.get("deps", True)
        all_of_them = self._engine.closure(chosen, self._engine.dependents) if deps else chosen
        names = {entry.name for entry in chosen}
        for entry in all_of_them:
            if entry.name not in names and entry.wanted:
                on = ", ".join(each.name for each in self._engine.dependencies(entry) if each in all_of_them)
                progress({"warning": f"stopping {entry.name} as well, which depends on {on}"})
        order = Order(self._engine, STOP, all_of_them, lambda entry: entry.at_rest)
        for entry in all_of_them:
            self._engine.stop(entry, kill=bool(options.get("kill")))
        document = await order.conclude(chosen, options, progress)
        if everything and document["exit_code"] == 0 and options.get("wait", True):
            document["ended"] = True
            document["keeper_pid"] = self._about["keeper_pid"]
            self._shut_down()
        return document

    async def wait(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """Return when each selected server is what `for` says; exit code 124 when the time is over before."""
        entries = self._selected(selector)
        goal = str(options.get("for") or "ready")
        tests: dict[str, Callable[[Entry], bool]] = {
            "ready": lambda entry: entry.ready,
            "healthy": lambda entry: entry.ready,
            "stopped": lambda entry: entry.at_rest and not entry.failed,
        }
        test = tests.get(goal, lambda entry: entry.state == goal)
        if goal in ("ready", "healthy", "running"):
            entries = [entry for entry in entries if not entry.config.disabled]
        late = await until(self._engine, entries, test, options.get("timeout"), reporter(progress, options))
        errors = [late_as(entry, MONITOR, f"is {entry.state}, not {goal}").to_dict() for entry in late]
        return result(
            self._reports.items(self._selected(selector)), errors, exit_code=TIMED_OUT if late else 0
        )

    # What they share.

    def _selected(self, selector: Selector) -> list[Entry]:
        entries = list(self._engine.entries.values())
        chosen, unmatched = select(self._reports.items(entries), selector)
        if unmatched is not None:
            nothing = error(PARAM[0], PARAM[1], unmatched.message, unmatched.hint)
            raise NothingMatched(result([], [nothing], exit_code=NOTHING_MATCHED))
        names = {each["name"] for each in chosen}
        return [entry for entry in entries if entry.name in names]


def _options(body: Document) -> Document:
    """The command's options. Raises SelectorError for a body of another shape than the protocol's."""
    options = body.get("options") or {}
    if not isinstance(options, dict) or not isinstance(body.get("selector") or {}, dict):
        raise SelectorError(
            "selector and options must be objects", hint="objects, with timeout in seconds and env as a table"
        )
    for name, kinds in (("timeout", (int, float)), ("env", (dict,))):
        if options.get(name) is not None and not isinstance(options[name], kinds):
            raise SelectorError(
                f"{name} is {options[name]!r}", hint="objects, with timeout in seconds and env as a table"
            )
    return options
