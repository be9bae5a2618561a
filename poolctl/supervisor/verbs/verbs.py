"""Dispatches requests of the control socket to verbs, and records them in the audit trail."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial

from poolctl.control.answers import ErrorEntry, Item, PingResult, Result, failure
from poolctl.control.control_server import Progress, Request
from poolctl.control.protocol import CHANGING_VERBS, PROTOCOL
from poolctl.core.workqueue import caused_by
from poolctl.errors import PoolParamError
from poolctl.exit_codes import CONFLICT, FAILED, NOTHING_MATCHED, USAGE
from poolctl.feature import features
from poolctl.json_form import Table
from poolctl.platform import user_name
from poolctl.selection.selector import NothingMatched, Selector, SelectorError

from ..configuration_reader import ReaderFailed
from . import changing_verbs, reading_verbs
from .configuration_drift import ConfigurationDrift
from .open_file_limit import TooManyOpenFiles
from .reload import Reload
from .upgrade import Upgrade
from .verb import Call, Verb, VerbContext, match_expressions

AUDITED = CHANGING_VERBS | {"upgrade", *(verb for feature in features() for verb in feature.changing)}
# Options that are recorded with their values; others may hold secrets, such as an environment.
_RECORDED = ("timeout", "wait", "deps", "kill", "workers", "auto", "all")


class Verbs:
    """The request handler of the control socket."""

    def __init__(self, context: VerbContext) -> None:
        self._daemon = context.daemon
        self._core = context.core
        self._events = context.events
        self.used = False
        self.build = context.build
        self._drift = ConfigurationDrift(context)
        self._verbs: dict[str, Verb] = {
            **reading_verbs.verbs(context),
            **changing_verbs.verbs(context),
            "reload": Reload(context).reload,
            "upgrade": Upgrade(context).upgrade,
        }

    def add(self, name: str, verb: Verb) -> None:
        """Add a verb, or replace the verb of this name."""
        self._verbs[name] = verb

    async def handle(self, request: Request, progress: Progress) -> object:
        """Answer one request; `progress` sends the client a line before the answer."""
        self.used = True
        if request.verb == "ping":
            return PingResult(**vars(self._daemon.identity()), build=self.build.known_digest)
        try:
            return await self._answer(request, progress)
        except ImportError as error:
            if not await self.build.is_replaced():
                raise
            return _build_upgrade_required_result(str(error))

    async def _answer(self, request: Request, progress: Progress) -> object:
        if request.verb not in self._verbs:
            message = f"this supervisor does not know {request.verb!r} (protocol {PROTOCOL})"
            return _failed(USAGE, message, f"it knows: {', '.join(sorted([*self._verbs, 'ping']))}")
        try:
            options = request.body.get("options") or {}
            selector = Selector.from_dict(request.body.get("selector") or {})
        except SelectorError as wrong:
            return _failed(USAGE, wrong.message, wrong.hint)
        call = Call(selector, options, progress, partial(peer, request), request.attach)
        return await self._perform_audited(request.verb, call)

    async def _perform_audited(self, verb: str, call: Call) -> Result:
        """Perform the verb; return its result.

        If the verb is in AUDITED, the beginning and the end are recorded in the audit trail, even if the verb fails.
        """
        if verb not in AUDITED or call.options.get("dry_run"):
            return await self._perform_safely(verb, call)
        by = call.by()
        selection = {
            key: value for key, value in call.selector.to_dict().items() if value and key != "allow_empty"
        }
        message = " ".join([verb, *_selector_arguments(selection), *_option_arguments(verb, call.options)])
        recorded = {key: call.options[key] for key in _RECORDED if call.options.get(key) is not None}
        self._events.record("audit", verb, message=message, by=by, selection=selection, options=recorded)
        begun, is_abandoned = time.monotonic(), False
        outcome = _failed(FAILED, "an internal error of the supervisor")
        try:
            with caused_by(message, by):
                outcome = await self._perform_safely(verb, call)
            return outcome
        except asyncio.CancelledError:
            outcome, is_abandoned = _failed(FAILED, "the client disconnected"), True
            raise
        finally:
            word = "abandoned" if is_abandoned else "failed" if outcome.exit_code else "done"
            self._events.record(
                "audit",
                f"{verb} {word}",
                message=message,
                by=by,
                cause=outcome.errors[0].message.partition("\n")[0] if outcome.errors else "",
                exit_code=None if is_abandoned else outcome.exit_code,
                servers=[item.name for item in outcome.items if isinstance(item, Item)],
                duration_seconds=round(time.monotonic() - begun, 3),
            )

    async def _perform_safely(self, verb: str, call: Call) -> Result:
        try:
            return await self.perform(verb, call)
        except SelectorError as wrong:
            return _failed(USAGE, wrong.message, wrong.hint)
        except NothingMatched as nothing:
            error = failure(PoolParamError, nothing.message, nothing.hint)
            return await self._drift.explain_missing_servers(
                call, Result(errors=(error,), exit_code=NOTHING_MATCHED)
            )
        except TooManyOpenFiles as refused:
            # A supervisor without servers ends instead, because it would keep the limit that it was started with.
            if not self._core.servers.has_never_run:
                return refused.result
            return replace(refused.result, ended=True, keeper_pid=self._daemon.shut_down_soon())
        except ReaderFailed as failed:
            if not failed.installed and await self.build.is_replaced():
                return _build_upgrade_required_result(str(failed))
            return failed.result

    async def perform(self, verb: str, call: Call) -> Result:
        """Perform one verb; returns its result.

        Raises SelectorError for wrong options, NothingMatched, TooManyOpenFiles, and ReaderFailed.
        """
        applied = await self._drift.apply_if_at_rest(call) if verb == "start" else None
        if applied is not None and applied.exit_code:
            return applied
        await match_expressions(self._core, call.selector)
        if call.options.get("saves") is True:
            self._drift.ignore_next_change()
        result = await self._verbs[verb](call)
        if applied is not None:
            result = replace(result, changed=applied.changed)
        else:
            result = await self._drift.add_changed_files(verb, call, result)
        return await self._daemon.wait_for_effects(verb, call, result)


def _failed(code: int, message: str, hint: str = "") -> Result:
    error = ErrorEntry(code=code, error="ErrorUsage", message=message, hint=hint)
    return Result(errors=(error,), exit_code=code)


def _build_upgrade_required_result(why: str) -> Result:
    message = f"another poolctl has been installed since this pool's supervisor was started: {why}"
    error = ErrorEntry(code=CONFLICT, error="ErrorUpgrade", message=message, hint="poolctl upgrade")
    return Result(errors=(error,), exit_code=CONFLICT)


def peer(request: Request) -> Table:
    """Return the client's uid and pid as the kernel reports them, the user's name, and the client's command.

    If the client claims to act for another command, returns that command; if for a browser, adds the browser's address.
    """
    sender: Table = {"uid": request.uid, "pid": request.pid, "user": user_name(request.uid)}
    try:
        with open(f"/proc/{request.pid}/comm", encoding="utf-8", errors="replace") as file:
            sender["command"] = file.read().rstrip("\n")
    except OSError:
        pass
    return sender | _on_behalf_of(request.body.get("by"))


def _on_behalf_of(by: object) -> Table:
    """Return the `command` and the browser `address` in `by`, for which the client claims to act, if `by` has them."""
    if not isinstance(by, dict):
        return {}
    return {key: by[key][:200] for key in ("command", "address") if isinstance(by.get(key), str) and by[key]}


def _selector_arguments(selection: Table) -> list[str]:
    options = [key for key in selection if key not in ("targets", "not")]
    words = [f"--{key} {value}" for key in options for value in selection[key]]
    return [*selection.get("targets", ()), *words, *(["--not"] if "not" in selection else [])]


def _option_arguments(verb: str, options: Table) -> list[str]:
    if verb not in CHANGING_VERBS and "op" in options:
        return [str(options["op"]), *map(str, options.get("hosts") or ())]
    everything = ["--all"] if options.get("all") is True else []
    if verb == "scale":
        return [*everything, "--auto" if options.get("auto") is True else str(options.get("workers"))]
    if everything:
        return everything
    server = options.get("server")
    return [str(server.get("name", ""))] if verb == "add" and isinstance(server, dict) else []
