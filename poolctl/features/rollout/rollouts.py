"""The verbs `rollout` and `rollouts`: the feature's part of the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from poolctl.config import ServerConfig
from poolctl.control.answers import ProgressLine, Result, failure
from poolctl.core.configuration_diff import differences, is_live, key_list_text
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolRestartError, ServerError
from poolctl.exit_codes import CONFLICT, FAILED, INVALID_CONFIGURATION
from poolctl.json_form import Table
from poolctl.selection.selector import SelectorError
from poolctl.states import State, in_words
from poolctl.supervisor.feature_parts import FeaturePart, PartContext
from poolctl.supervisor.verbs.verb import Call, Verb, selected

from . import _verdict
from ._canary_rollout import PROMOTED, CanaryRollout, RolloutPlan
from ._verdict import RolloutReport, RolloutResult

_OPTIONS_HINT = "op is begin, promote, abort, pause or resume; share, seconds and min_requests are numbers"
# Keys shared by all workers of a server: its socket, and who may use the connections passed to it.
_COMMON = ("bind", "tls", "user", "command", "socket", "overlap", "job")
_MOST_SHARE = 0.9
_LAST_CANARY_SECONDS = 5.0


class Rollouts(FeaturePart):
    """The rollouts of this supervisor, one per server at a time. After a restart the next supervisor withdraws them."""

    def __init__(self, site: PartContext) -> None:
        super().__init__(site)
        self._core = site.core
        self._events = site.events
        self._configuration = site.environment.configuration
        self._rollouts: dict[str, CanaryRollout] = {}
        # A client whose supervisor was replaced asks again at once.
        self._core.withdraw_canaries_of_previous_supervisor()

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {"rollout": self.rollout, "rollouts": self.rollouts}

    async def rollout(self, call: Call) -> Result:
        """Begin a rollout of one server, or promote, abort, pause or resume the current rollouts."""
        operation = call.options.get("op", "begin")
        try:
            return await (
                self._run_rollout(call) if operation == "begin" else self._change_rollouts(call, operation)
            )
        except _RolloutRefused as refused:
            return refused.result

    async def _change_rollouts(self, call: Call, operation: str) -> Result:
        if operation not in ("promote", "abort", "pause", "resume"):
            raise SelectorError(f"no such operation: {operation!r}", hint=_OPTIONS_HINT)
        chosen = selected(self._core, call.selector)
        found = [self._rollouts.get(entry.name) for entry in chosen]
        running = [each for each in found if each is not None and not each.is_over]
        if not running:
            message = f"no rollout of {', '.join(entry.name for entry in chosen)} is under way"
            raise _RolloutRefused(message, "`poolctl rollout status` lists them")
        for each in running:
            if operation == "promote":
                each.begin_promotion("promoted by hand")
            elif operation == "abort":
                each.withdraw("aborted by hand")
            else:
                each.is_paused = operation == "pause"
        if operation in ("promote", "abort"):
            return await self._await_outcome(running, call, aborted=operation == "abort")
        return RolloutResult(items=await _reports(running))

    async def rollouts(self, call: Call) -> RolloutResult:
        """The current or last rollout of each selected server; servers that had no rollout are omitted."""
        names = {entry.name for entry in selected(self._core, call.selector)}
        return RolloutResult(
            items=await _reports([each for name, each in self._rollouts.items() if name in names])
        )

    async def _run_rollout(self, call: Call) -> Result:
        chosen = selected(self._core, call.selector)
        if len(chosen) != 1:
            raise SelectorError(f"a rollout is of one server, and {len(chosen)} are selected")
        (entry,) = chosen
        plan = _plan_of_options(entry, call.options)
        again = call.options.get("again")
        if isinstance(again, int) and (found := await self._await_previous_promoted_result(entry, again)):
            return found
        if entry.desired.canary is None and not await self._await_previous_canary_closed(entry):
            raise _RolloutRefused(
                f"{entry.name}: its last canary has not left yet", f"poolctl status {entry.name}"
            )
        self._refuse_unfit(entry)
        resolved = await self._configuration.read_without_activating(
            call.options.get("env"), keep=self._core.entries
        )
        if resolved.problems:
            return RolloutResult(errors=tuple(resolved.problems), exit_code=INVALID_CONFIGURATION)
        self._refuse_unfit(entry)  # it may have changed while the files were read
        written = next((each for each in resolved.servers if each.name == entry.name), entry.config)
        plan = _plan_for_file_changes(entry, written, plan)
        plan = await self._try_open_canary_address(entry, plan, force=bool(call.options.get("force")))
        rollout = CanaryRollout(self._core, self._events, entry, plan)
        self._rollouts[entry.name] = rollout
        others = "" if plan.apart is None else f"; {entry.config.key} itself is served by the others"
        notice = f"{entry.name}: {rollout.share_in_words}, {plan.what}{others}"
        call.progress(ProgressLine(notice=notice, generation=rollout.generation))
        return await self._await_outcome([rollout], call, aborted=False)

    async def _try_open_canary_address(self, entry: Entry, plan: RolloutPlan, *, force: bool) -> RolloutPlan:
        """Return the plan with `apart`, or `why` if the gateway cannot divide requests. `force` allows large shares."""
        obstacle = self._core.split_obstacle(entry.name)
        if obstacle != "":
            plan = plan._replace(why=obstacle or "")
            if not force:
                _refuse_too_large(entry, plan)
            return plan
        try:
            plan = plan._replace(apart=await self._core.open_canary_address(plan.config))
        except ServerError as error:
            raise _RolloutRefused(
                f"{entry.name}: its canary has no address: {error.message}", error.hint
            ) from None
        try:
            self._refuse_unfit(entry)
        except _RolloutRefused:
            assert plan.apart is not None
            self._core.close_canary_address(plan.apart)
            raise
        return plan

    async def _await_previous_canary_closed(self, entry: Entry) -> bool:
        """Wait at most five seconds for the last canary's address to close; returns whether it is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_CANARY_SECONDS):
                await self._wait_until(entry, lambda: entry.separate_canary_config is None)
        return entry.separate_canary_config is None

    async def _await_previous_promoted_result(self, entry: Entry, generation: int) -> RolloutResult | None:
        """Return the answer "promoted" if the previous supervisor promoted the canary of `generation`; else None."""
        if entry.desired.generation < generation:
            return None
        await self._wait_until(
            entry, lambda: entry.is_fully_ready or not entry.wanted or entry.desired.generation < generation
        )
        if entry.desired.generation < generation:
            return None  # its other workers could not be replaced
        reason = "promoted before the supervisor was replaced"
        report = _verdict.RolloutReport(name=entry.name, state=PROMOTED, reason=reason, generation=generation)
        return RolloutResult(items=(report,))

    async def _wait_until(self, entry: Entry, condition: Callable[[], bool]) -> None:
        """Return when the condition is true; it is checked at once and on each change of a server."""
        met = asyncio.Event()

        def look(changed: Entry) -> None:
            if condition():
                met.set()

        look(entry)
        self._core.observers.add(look)
        try:
            await met.wait()
        finally:
            self._core.observers.discard(look)

    def _refuse_unfit(self, entry: Entry) -> None:
        """Raise _RolloutRefused if the server cannot have a rollout now, for example a job or a stopped server."""
        name, config = entry.name, entry.config
        if config.job or config.command:
            kind = "a job" if config.job else "a program, whose requests poolctl does not count"
            raise _RolloutRefused(f"{name} is {kind}", f"poolctl restart {name}")
        if not entry.may_overlap:
            raise _RolloutRefused(
                f"{name}: two generations of it may not run at once", f"poolctl restart {name}"
            )
        if entry.desired.canary is not None:
            raise _RolloutRefused(f"a rollout of {name} is under way", "poolctl rollout status")
        if entry.observed.recovering:
            message = f"a recovery of {name} is under way; only a server that runs whole has a rollout"
            raise _RolloutRefused(message, f"poolctl wait {name}, then repeat it")
        if not (entry.wanted and entry.is_fully_ready):
            raise _RolloutRefused(
                f"{name} is {in_words(entry.state)}; only a server that runs whole has a rollout",
                # A start leaves a sleeping server asleep.
                f"poolctl scale {name} 1" if entry.state is State.SLEEPING else f"poolctl start {name}",
            )

    async def _await_outcome(
        self, rollouts: list[CanaryRollout], call: Call, *, aborted: bool
    ) -> RolloutResult:
        """Wait until these rollouts are over, or until their canaries serve if the option `wait` is false.

        Returns the rollouts' reports. A withdrawn rollout is an error, but not if the client has `aborted` it.
        """
        wait = call.options.get("wait", True)
        for each in rollouts:
            await (each.over if wait else each.begun).wait()
        reports = await _reports(rollouts)
        failed = [each for each in reports if each.state == "withdrawn" and not aborted]
        errors = tuple(
            replace(
                failure(PoolRestartError, f"withdrawn: {each.reason}", f"poolctl logs {each.name}"),
                name=each.name,
            )
            for each in failed
        )
        return RolloutResult(items=reports, errors=errors, exit_code=FAILED if failed else 0)


async def _reports(rollouts: Sequence[CanaryRollout]) -> tuple[RolloutReport, ...]:
    for each in rollouts:
        if not each.is_over:
            await each.measure_memory()
    return tuple(each.report() for each in rollouts)


class _RolloutRefused(Exception):
    """The request is valid, but the pool's current state does not allow it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.result = RolloutResult(errors=(failure(PoolRestartError, message, hint),), exit_code=CONFLICT)


def _plan_of_options(entry: Entry, options: Table) -> RolloutPlan:
    """The plan from these options, for a rollout of new code with an unchanged configuration. Raises SelectorError."""
    share, seconds = _number(options, "share", 0.1), _number(options, "seconds", 300)
    least = int(_number(options, "min_requests", 100))
    if not 0 < share <= _MOST_SHARE:
        hint = f"a share above 0 % and up to {100 * _MOST_SHARE:g} %, such as 10%"
        raise SelectorError(f"the canary's share is {100 * share:g} %", hint=hint)
    conditions, is_paused = _conditions(options), bool(options.get("pause"))
    return RolloutPlan(entry.config, "code", share, 0, seconds, least, conditions, is_paused)


def _plan_for_file_changes(entry: Entry, written: ServerConfig, plan: RolloutPlan) -> RolloutPlan:
    """Return the plan for `written`, the configuration in the files, if changed keys require new workers.

    Otherwise return the plan for new code alone. Raises _RolloutRefused if a key that all workers share has changed.
    """
    keys = [key for key in differences(entry.config, written) if not is_live(key, entry.config, written)]
    if common := [key for key in keys if key.partition(".")[0] in _COMMON]:
        message = f"{entry.name}: {key_list_text(common)} changed, which all of its workers have in common"
        raise _RolloutRefused(message, "poolctl reload")
    plan = plan._replace(config=entry.config, canaries=_verdict.canaries_for(plan.share, entry.size))
    return plan._replace(config=written, what=f"{key_list_text(keys)} changed") if keys else plan


def _refuse_too_large(entry: Entry, plan: RolloutPlan) -> None:
    """Raise _RolloutRefused if equal traffic for all workers would give canaries more than twice `plan.share` of it."""
    count, share = plan.canaries, plan.share
    real = count / (count + entry.size)
    if real <= 2 * share:
        return
    message = (
        f"{entry.name}: {count} of {count + entry.size} workers would have {100 * real:.3g} % of the traffic, "
        f"more than twice the {100 * share:g} % asked for"
    )
    if plan.why:
        message = f"{message}; {plan.why}"
    raise _RolloutRefused(
        message, f"poolctl scale {entry.name} {round(count / share) - count}, or --allow-larger-share"
    )


def _number(options: Table, name: str, default: float) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise SelectorError(f"{name} is {value!r}", hint=_OPTIONS_HINT)
    return float(value)


def _conditions(options: Mapping[str, object]) -> list[_verdict.AbortCondition]:
    texts = options.get("abort_on") or _verdict.DEFAULT_CONDITIONS
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise SelectorError("abort_on must be a list of conditions", hint=_OPTIONS_HINT)
    try:
        return [_verdict.parse_condition(text) for text in texts]
    except ValueError as wrong:
        raise SelectorError(str(wrong)) from None
