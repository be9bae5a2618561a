"""Runs a pool's commands against a Kubernetes cluster, which takes the place of the supervisor.

No poolctl process stays running between commands. A command compiles the files into objects, applies the
objects of its servers, and watches the cluster until each server has reached its goal or has failed with a reason.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import ClassVar, NamedTuple

from poolctl import __version__
from poolctl.address import parse
from poolctl.cli.outcome import Failure, Outcome
from poolctl.config import Configuration, ServerConfig, load
from poolctl.config.values.plain import EMPTY
from poolctl.control.answers import (
    ErrorEntry,
    PlannedChange,
    ProgressLine,
    ReloadResult,
    Result,
    ServerProgress,
    failure,
)
from poolctl.control.pool_paths import pool_key, state_dir
from poolctl.control.server_answers import (
    LiveOverrides,
    ServerDetails,
    ShowResult,
    StacksResult,
    WorkerDetails,
)
from poolctl.core.configuration_diff import Kind
from poolctl.errors import (
    ControlError,
    PoolError,
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
)
from poolctl.exit_codes import (
    CONFLICT,
    FAILED,
    INVALID_CONFIGURATION,
    NOT_AS_DESIRED,
    NOT_PERMITTED,
    NOTHING_MATCHED,
    TIMED_OUT,
    USAGE,
)
from poolctl.json_form import Table, to_json
from poolctl.logs.log_line import seconds_of, stamp
from poolctl.platform import replace_file
from poolctl.selection.selector import NothingMatched, Selector, SelectorError, select
from poolctl.states import in_words

from ._cluster import KINDS, Cluster, NotFound, first_exception
from ._compile import CompiledPool, compile_pool, pool_name, require_kubernetes_settings
from ._exec import run_in_first_ready_pods, stacks_of_pods
from ._objects import digest_of, with_revision
from ._state import (
    APPLIED,
    POOL,
    SERVER,
    STOPPED,
    WORKERS,
    ClusterServerItem,
    Pod,
    Problem,
    ScheduledWorkload,
    Workload,
    server_of,
    template_owner,
    workloads,
)

Progress = Callable[[Table], None]

_WATCHED = ("Deployment", "Job", "Pod")
_WORKLOADS = ("Deployment", "Job", "CronJob")
# The objects are listed again after this time without a change, so that an unresponsive cluster is noticed.
_LISTED_AGAIN_SECONDS = 3.0
# How often time limits are checked: of an unschedulable pod, of a slow server.
_TICK_SECONDS = 0.5
_STARTED = (
    "kubernetes.json"  # in the state directory: the cluster and namespace where the pool was last started
)
_AT_ONCE = 16  # requests
# An unschedulable or rejected pod counts as failed after this time: a node may be about to join, or a quota to
# be raised.
_PASSING_SECONDS = 5.0
_COMMANDS = frozenset((
    "filter", "list", "logs", "reload", "restart", "scale", "show", "stacks", "start", "status", "stop", "wait",
    "walk",
))  # fmt: skip
# Kinds of which a server has at most one object; it is deleted when the server's configuration needs it no longer.
_PRUNED = ("HorizontalPodAutoscaler", "Deployment", "CronJob", "Service")
_ROUTES = ("HTTPRoute", "Ingress")
_NO_ROUTES = (
    "install the Gateway API on the cluster, or write ingress_class in [kubernetes] instead of gateway"
)
_HINTS = {
    "drain": "kubectl cordon and kubectl drain take nodes out; poolctl stop takes a server out",
    "events": "kubectl events shows what the cluster has done",
    "metrics": "kubectl top pods shows the use of processor and memory",
    "run": "poolctl start and poolctl wait, then the command, do the same on a cluster",
    "upgrade": "give the image another tag, then poolctl reload",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus(Result):
    """The answer of `status` on a cluster; its summary has the context and namespace."""

    PRINTED: ClassVar[tuple[str, ...]] = ("summary",)

    items: tuple[ClusterServerItem, ...] = ()
    summary: Table | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterServersResult(Result):
    """The answer of verbs that list servers, or that change them."""

    items: tuple[ClusterServerItem, ...] = ()


class VerbArguments(NamedTuple):
    """The arguments of a command: selected servers, options, progress callback, and time limit in seconds or None."""

    selector: Selector
    options: Table
    progress: Progress
    timeout: float | None


class KubernetesPlatform:
    """Runs the commands of a pool on a cluster; has the interface of `control.client.Client`."""

    def __init__(self, files: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
        self.files = list(files)
        self._environment = environment

    def __repr__(self) -> str:
        return f"<KubernetesPlatform {', '.join(self.files)}>"

    def call(
        self,
        verb: str,
        body: Mapping[str, object] | None = None,
        on_progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Table:
        """Return the result of `verb` as a document. Raises ControlError; Failure with exit code 5 for invalid files.

        Blocks. `timeout` in seconds limits the wait for servers. Each request to the cluster has its own time limit.
        """
        given = body or {}
        selector: Table = given.get("selector") or {}  # type: ignore[assignment]
        options: Table = given.get("options") or {}  # type: ignore[assignment]
        try:
            call = VerbArguments(
                Selector.from_dict(selector), options, on_progress or (lambda line: None), timeout
            )
            call.selector.matched = (
                None  # regular expressions may be compiled here: this is the caller's own process
            )
            return to_json(asyncio.run(self._perform_verb(verb, call)))
        except SelectorError as wrong:
            return to_json(
                Result(errors=(failure(PoolParamError, wrong.message, wrong.hint),), exit_code=USAGE)
            )

    def check_supported(self, command: str) -> None:
        """Raise ControlError (2) for a command that is not supported on a cluster."""
        if command not in _COMMANDS:
            raise not_on_a_cluster(command)

    async def _perform_verb(self, verb: str, call: VerbArguments) -> Result:
        config = load(self.files, self._environment)
        if config.problems:
            errors = list(map(ErrorEntry.of, config.problems))
            raise Failure(Outcome(errors=errors, exit_code=INVALID_CONFIGURATION))
        settings = require_kubernetes_settings(config)
        async with Cluster(settings.context, settings.namespace, self._environment) as cluster:
            pool = _ClusterPool(cluster, config, self.files)
            if verb == "stop" and call.selector.selects_all and not call.options.get("yes"):
                self._refuse_other_cluster(cluster)
            found: Mapping[str, Callable[[VerbArguments], Awaitable[Result]]] = {
                "list": pool.listing,
                "stats": pool.listing,
                "status": pool.status,
                "show": pool.show,
                "wait": pool.wait,
                "logs": pool.logs,
                "stacks": pool.stacks,
                "walk": pool.run_in_each_server,
                "start": pool.start,
                "restart": pool.restart,
                "stop": pool.stop,
                "scale": pool.scale,
                "reload": pool.reload,
            }
            try:
                result = await found[verb](call)
            except NothingMatched as nothing:
                error = failure(PoolParamError, nothing.message, nothing.hint)
                return ClusterServersResult(errors=(error,), exit_code=NOTHING_MATCHED)
            if verb == "start":
                self._record_cluster(cluster)
            return result

    def _record_cluster(self, cluster: Cluster) -> None:
        """Save in a local file the context and namespace in which the pool starts, for `_refuse_other_cluster`."""
        started = {"context": cluster.context, "namespace": cluster.namespace}
        # The pool has started: a stop says why the directory is refused.
        with suppress(OSError, ControlError):
            directory = state_dir(self._environment, pool_key(self.files[0]), create=True)
            replace_file(os.path.join(directory, _STARTED), json.dumps(started).encode())

    def _refuse_other_cluster(self, cluster: Cluster) -> None:
        """Raise ControlError with exit code 2 if the last recorded start was on another cluster or namespace."""
        directory = state_dir(self._environment, pool_key(self.files[0]))
        try:
            with open(os.path.join(directory, _STARTED), encoding="utf-8") as file:
                started = json.load(file)
            before = str(started["context"]), str(started["namespace"])
        except (OSError, ValueError, LookupError, TypeError):
            return
        if before != (cluster.context, cluster.namespace):
            raise ControlError(
                f"this would stop the pool on context {cluster.context}, namespace {cluster.namespace}; "
                f"it was started on context {before[0]}, namespace {before[1]}",
                exit_code=USAGE,
                hint="poolctl stop --yes stops it here",
            )


def not_on_a_cluster(verb: str) -> ControlError:
    """The error for a command that is not supported on a cluster."""
    hint = _HINTS.get(verb, "docs/kubernetes.md lists what works on a cluster, and what has no equal there")
    return ControlError(
        f"{verb} is for a pool on this machine: this one runs on Kubernetes", exit_code=USAGE, hint=hint
    )


class _ClusterPool:
    """A pool and its objects on the cluster, which are kept up to date while `watching`."""

    def __init__(self, cluster: Cluster, config: Configuration, files: Sequence[str]) -> None:
        self._cluster = cluster
        self._config = config
        self._servers = [_with_default_expose_url(each) for each in config]
        self._files = list(files)
        self._labels = {POOL: pool_name(config, files)}
        self._has_schedules = any(each.every is not None for each in config)
        self._objects: dict[str, dict[str, Table]] = {kind: {} for kind in (*_WATCHED, "CronJob")}
        self._versions: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._compiled: CompiledPool | None = None
        self._turns = asyncio.Semaphore(_AT_ONCE)

    # Observed objects

    async def refresh(self) -> dict[str, Workload]:
        """List the cluster's objects; returns the servers.

        That takes three requests for any number of servers, and a fourth if one of them has a schedule.
        """
        kinds = (*_WATCHED, "CronJob") if self._has_schedules else _WATCHED
        lists = await asyncio.gather(*(self._cluster.list(kind, self._labels) for kind in kinds))
        for kind, (found, version) in zip(kinds, lists, strict=True):
            self._objects[kind] = {each["metadata"]["name"]: each for each in found}
            self._versions[kind] = version
        self._changed.set()
        return self.workloads()

    def workloads(self) -> dict[str, Workload]:
        """The servers by name as last seen."""
        return workloads(self._servers, *(self._objects[kind].values() for kind in (*_WATCHED, "CronJob")))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keep the objects up to date within the block; if that fails, the block is cancelled and the error raised."""
        try:
            async with asyncio.TaskGroup() as group:
                watches = [group.create_task(self._watch(kind)) for kind in _WATCHED]
                watches.append(group.create_task(self._refresh_periodically()))
                yield
                for each in watches:
                    each.cancel()
        except BaseExceptionGroup as raised:
            raise first_exception(raised) from None

    async def _watch(self, kind: str) -> None:
        while True:
            async for change, found in self._cluster.watch(kind, self._labels, self._versions[kind]):
                if change == "BOOKMARK":
                    continue
                name = found["metadata"]["name"]
                if change == "DELETED":
                    self._objects[kind].pop(name, None)
                else:
                    self._objects[kind][name] = found
                self._changed.set()
            # The API server ends a watch after some minutes, and may no longer have the resource version.
            await asyncio.sleep(_TICK_SECONDS)
            await self.refresh()

    async def _refresh_periodically(self) -> None:
        while True:
            await asyncio.sleep(_LISTED_AGAIN_SECONDS)
            await self.refresh()

    async def wait_until(
        self, call: VerbArguments, names: Iterable[str], is_over: Callable[[Workload], bool]
    ) -> list[str]:
        """Wait until `is_over` is true for all servers, and report progress; returns those that exceed the timeout."""
        names = list(names)
        seen: dict[str, tuple[str, bool, bool]] = {}
        deadline = None if call.timeout is None else time.monotonic() + call.timeout
        while True:
            self._changed.clear()
            found, now = self.workloads(), time.time()
            late = [name for name in names if not is_over(found[name])]
            for name in names:
                item = found[name].item(now)
                step = (item.state, item.ready, name not in late)
                if seen.get(name) != step:
                    seen[name] = step
                    call.progress(_step_line(found[name], item, done=step[2]))
            if not late:
                return []
            if deadline is not None and time.monotonic() >= deadline:
                return late
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._changed.wait()

    def _selected(self, call: VerbArguments, found: Mapping[str, Workload]) -> list[str]:
        """The names of the selected servers. Raises NothingMatched."""
        return [each.name for each in select(self._items(found), call.selector)]

    def _items(
        self, found: Mapping[str, Workload], names: Iterable[str] | None = None
    ) -> tuple[ClusterServerItem, ...]:
        now = time.time()
        return tuple(found[name].item(now) for name in (found if names is None else names))

    # Verbs that change nothing

    async def listing(self, call: VerbArguments) -> Result:
        """List the selected servers with their current states."""
        found = await self.refresh()
        return ClusterServersResult(items=self._items(found, self._selected(call, found)))

    async def status(self, call: VerbArguments) -> Result:
        """Summarize the selected servers; exit code 3 if one that should run is not ready."""
        found = await self.refresh()
        names = self._selected(call, found)
        items = self._items(found, names)
        wanted = [each for each in items if found[each.name].is_wanted]
        errors = [
            _error(found[each.name], PoolMonitorError, why.message, why.hint)
            if (why := found[each.name].failure())
            else _error(found[each.name], PoolMonitorError, f"is {in_words(each.state)}, not ready")
            for each in wanted
            if not each.ready
        ]
        summary = {
            "name": self._labels[POOL],
            "files": self._files,
            "version": __version__,
            "context": self._cluster.context,
            "namespace": self._cluster.namespace,
            "servers": len(items),
            "should_run": len(wanted),
            "ready": sum(each.ready for each in items),
            "states": dict(Counter(each.state for each in items)),
            "health": dict(Counter(each.health for each in items)),
        }
        code = NOT_AS_DESIRED if errors else 0
        return ClusterStatus(items=items, errors=tuple(errors), exit_code=code, summary=summary)

    async def show(self, call: VerbArguments) -> Result:
        """The selected servers with their pods, and the last output of failed ones."""
        found = await self.refresh()
        names = self._selected(call, found)
        return ShowResult(items=tuple(self._details(found[name]) for name in names))

    def _details(self, workload: Workload) -> ServerDetails:
        config, now = workload.config, time.time()
        item = {name: value for name, value in vars(workload.item(now)).items() if name != "worker_list"}
        why = workload.failure()
        last = next((str(text) for pod in workload.pods if (text := pod.last_exit().get("message"))), "")
        return ServerDetails(
            **item,
            overrides=LiveOverrides(workers=workload.workers_override),
            endpoints=(f"{config.name}:{config.address.port}",) if config.listens else (),
            generation=workload.generation,
            worker_list=tuple(_worker(pod) for pod in workload.pods),
            complaint=last.strip(),
            preload_problem="",
            certificate_expires=None,
            failure=None if why is None else _error(workload, PoolStartError, why.message, why.hint),
            config=config.to_dict(),
            origin=config.origin,
            log_files=False,
        )

    async def wait(self, call: VerbArguments) -> Result:
        """Wait until the selected servers have reached the requested state, or the time limit has passed."""
        found = await self.refresh()
        names = self._selected(call, found)
        goal = str(call.options.get("for") or "ready")
        if goal in ("ready", "healthy"):
            names = [name for name in names if found[name].is_wanted]

        def is_over(workload: Workload) -> bool:
            item = workload.item(time.time())
            return {"ready": item.ready, "healthy": item.ready and item.health == "ok"}.get(
                goal, item.state == goal
            )

        async with self.watching():
            late = await self.wait_until(call, names, is_over)
        return self._result(names, PoolMonitorError, late=late, waited_for=f"not {goal}")

    async def logs(self, call: VerbArguments) -> Result:
        """Send the last `lines` lines of each worker; with `follow` also new lines, including those of new workers."""
        found = await self.refresh()
        names = set(self._selected(call, found))
        follow, since = bool(call.options.get("follow")), str(call.options.get("since") or "")
        since_seconds = max(1, math.ceil(time.time() - seconds_of(since))) if since else None
        if not follow:
            pods = [each for name in names for each in found[name].pods]
            reads = (self._lines_of(each, call.options.get("lines"), since_seconds) for each in pods)
            for line in sorted(itertools.chain(*await asyncio.gather(*reads)), key=itemgetter("time")):
                call.progress(line)
            return Result()
        at_first = {pod.name for name in names for pod in found[name].pods}
        async with self.watching(), asyncio.TaskGroup() as reading:
            known: set[str] = set()
            while True:
                self._changed.clear()
                for each in (
                    pod for name, of in self.workloads().items() if name in names for pod in of.pods
                ):
                    if each.has_begun and each.name not in known:
                        lines = call.options.get("lines") if each.name in at_first else None
                        known.add(each.name)
                        reading.create_task(self._follow(each, lines, since_seconds, call.progress))
                await self._changed.wait()

    async def _lines_of(self, pod: Pod, lines: int | None, since_seconds: int | None) -> list[Table]:
        if not pod.has_begun:
            return []
        found = self._cluster.log(pod.name, lines=lines, since_seconds=since_seconds, follow=False)
        return [_parse_log_line(pod, each) async for each in found]

    async def _follow(
        self, pod: Pod, lines: int | None, since_seconds: int | None, progress: Progress
    ) -> None:
        with suppress(NotFound):  # the pod is gone, and its output with it
            async for each in self._cluster.log(
                pod.name, lines=lines, since_seconds=since_seconds, follow=True
            ):
                progress(_parse_log_line(pod, each))

    async def stacks(self, call: VerbArguments) -> Result:
        """The current stacks of each worker of the selected servers."""
        found = await self.refresh()
        names = self._selected(call, found)
        none = [f"{name}: has no worker" for name in names if not found[name].pods]
        items = await stacks_of_pods(self._cluster, (found[name] for name in names))
        return StacksResult(items=tuple(items), warnings=tuple(none) if call.selector.targets else ())

    async def run_in_each_server(self, call: VerbArguments) -> Result:
        """The verb `walk`: run a command once for each selected server, in its first ready worker.

        Each run is sent as progress.
        """
        found = await self.refresh()
        names = self._selected(call, found)
        await run_in_first_ready_pods(
            self._cluster, [found[name] for name in names], call.options, call.progress
        )
        return Result()

    # Verbs that change servers

    @property
    def compiled(self) -> CompiledPool:
        """The pool compiled into objects. Raises Failure (5) for keys that are not supported on a cluster."""
        if self._compiled is None:
            self._compiled = compile_pool(self._config, self._files)
        return self._compiled

    async def start(self, call: VerbArguments) -> Result:
        """Start the selected servers and those that they depend on."""
        found = await self.refresh()
        chosen = self._selected(call, found)
        asked = self._without_unnamed_on_demand(chosen, found, call)
        return await self._bring_up(call, chosen, found, PoolStartError, asked=asked)

    @staticmethod
    def _without_unnamed_on_demand(
        chosen: Sequence[str], found: Mapping[str, Workload], call: VerbArguments
    ) -> list[str]:
        """The chosen servers without those that start on demand, do not run, and were not selected by name."""
        return [name for name in chosen if not found[name].rests_until_named or _is_named(found[name], call)]

    async def restart(self, call: VerbArguments) -> Result:
        """Replace the workers of the selected servers, new ones first."""
        found = await self.refresh()
        chosen = self._selected(call, found)
        asked = self._without_unnamed_on_demand(chosen, found, call)
        scheduled = {name: each for name, each in found.items() if isinstance(each, ScheduledWorkload)}
        refused = [
            _error(
                scheduled[name], PoolRestartError, "runs, and does not run twice at once", _stop_hint(name)
            )
            for name in asked
            if name in scheduled and _is_named(scheduled[name], call) and scheduled[name].runs_in_progress
        ]
        busy = {each.name for each in refused}
        able = [name for name in asked if name not in busy]
        for name in able:
            workload = found[name]
            if workload.config.job and name not in scheduled and workload.found is not None:
                job = workload.found["metadata"]["name"]
                await self._cluster.delete("Job", job)
                self._objects["Job"].pop(job, None)  # otherwise its result would be that of the next run
        restart = {name for name in able if name not in scheduled or _is_named(scheduled[name], call)}
        able_and_left = [name for name in chosen if name not in busy]
        result = await self._bring_up(
            call, able_and_left, found, PoolRestartError, asked=able, restart=restart, refused=refused
        )
        left_alone = tuple(name for name in able_and_left if name not in restart)
        return replace(result, unchanged=left_alone or None)

    async def _bring_up(
        self,
        call: VerbArguments,
        chosen: Sequence[str],
        found: Mapping[str, Workload],
        kind: type[PoolError],
        *,
        asked: Sequence[str],
        restart: frozenset[str] | set[str] = frozenset(),
        refused: Sequence[ErrorEntry] = (),
    ) -> Result:
        """Apply the servers in `asked`, dependencies first, and wait until all are complete; returns the `chosen` ones.

        `restart` names servers whose pods are replaced; `refused` are errors to include in the result.
        """
        names = self._with_dependencies(asked, found, call)
        runnable = [name for name in names if not self.compiled.servers[name].disabled]
        refused = [
            *refused,
            *(
                _error(
                    found[name],
                    kind,
                    "is disabled",
                    f"take `disabled` out of the file, then poolctl start {name}",
                )
                for name in asked
                if name not in runnable and call.selector.targets
            ),
        ]
        await self._refuse_foreign(runnable, found)
        bringing = _OrderedBringUp(self, call, kind)
        async with self.watching():
            await bringing.apply_and_wait(runnable, restart)
            await self._reconcile_routes(call, bringing)
        await self._delete_obsolete_objects_of(bringing.done)
        await self._delete_unused_configuration()
        return self._result(chosen, kind, late=bringing.late, errors=[*refused, *bringing.errors])

    def _with_dependencies(
        self, chosen: Sequence[str], found: Mapping[str, Workload], call: VerbArguments
    ) -> list[str]:
        """The chosen servers and their dependencies (unless excluded by an option), dependencies first."""
        needed = {each.name: [on.name for on in each.depends_on] for each in self.compiled.servers.values()}
        names, open_names = set(chosen), list(chosen)
        while open_names and call.options.get("deps", True):
            for name in needed.get(open_names.pop(), ()):
                if name in found and name not in names:
                    names.add(name)
                    open_names.append(name)
        return [name for name in needed if name in names]

    async def _refuse_foreign(self, names: Iterable[str], found: Mapping[str, Workload]) -> None:
        """Raise ControlError with exit code 8 if an object that the servers need belongs to another owner."""
        needed = [
            (name, wanted["kind"], wanted["metadata"]["name"])
            for name in names
            if found[name].found is None
            for wanted in self.compiled.objects[name]
        ]
        objects = await asyncio.gather(*(self._find(kind, called) for _, kind, called in needed))
        for (name, kind, called), there in zip(needed, objects, strict=True):
            if there is None:
                continue
            owner = ((there["metadata"].get("labels") or {}).get(POOL), server_of(there))
            if owner != (self._labels[POOL], name):
                raise self._name_conflict(kind, called)

    async def _find(self, kind: str, name: str) -> Table | None:
        async with self._turns:
            return await self._cluster.find(kind, name)

    async def apply_and_get_generation(
        self, name: str, *, restart: bool, force: bool, is_stopped: bool
    ) -> int:
        """Apply a server's objects; returns the new generation of its Deployment or CronJob, 0 for a Job."""
        workload = self.workloads()[name]
        generation = 0
        for each in self.compiled.objects[name]:
            wanted = each
            kind, called = each["kind"], each["metadata"]["name"]
            if kind in ("Deployment", "CronJob"):
                wanted = self._manifest_to_apply(each, workload, restart=restart, is_stopped=is_stopped)
            elif kind == "Job":
                if not (restart or workload.is_stopped) and workload.is_named(called):
                    continue  # a Job cannot be changed
                if workload.config.on_demand:
                    wanted = {**each, "spec": {**each["spec"], "suspend": False}}
            async with self._turns:
                done = await self._apply_resolving_own_conflicts(wanted, force=force)
                if kind in ("Deployment", "CronJob"):
                    if STOPPED in workload.annotations and not is_stopped:
                        changes = {"metadata": {"annotations": {STOPPED: None}}}
                        done = await self._cluster.patch(kind, called, changes)
                    generation = int(done["metadata"].get("generation") or 0)
                if kind in _WORKLOADS:
                    self._objects[kind][called] = done
        return generation

    async def run_now(self, name: str) -> str:
        """Begin a run of a scheduled job; returns the name of the run's Job."""
        found = self.workloads()[name].found
        assert found is not None  # it was applied
        metadata, template = found["metadata"], found["spec"]["jobTemplate"]
        owner = {"apiVersion": "batch/v1", "kind": "CronJob", "controller": True}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": f"{metadata['name']}-{digest_of({'now': time.time()})}",
                "labels": template["metadata"]["labels"],
                # As `kubectl create job --from` does; the runs beyond the limits are deleted with the others.
                "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
                "ownerReferences": [{**owner, "name": metadata["name"], "uid": metadata["uid"]}],
            },
            "spec": template["spec"],
        }
        done = await self._cluster.apply(job, force=False)
        self._objects["Job"][done["metadata"]["name"]] = done
        return str(done["metadata"]["name"])

    async def _apply_resolving_own_conflicts(self, wanted: Table, *, force: bool) -> Table:
        """Apply an object, and take over fields that this pool's `scale` or `stop` has set."""
        try:
            return await self._cluster.apply(wanted, force=force)
        except ControlError as error:
            if error.exit_code != CONFLICT or not _is_own_conflict(error.message):
                raise
            return await self._cluster.apply(wanted, force=True)

    def _manifest_to_apply(
        self, wanted: Table, workload: Workload, *, restart: bool, is_stopped: bool
    ) -> Table:
        """The Deployment or CronJob to apply; with `is_stopped`, scaled to 0 replicas or suspended.

        Otherwise a Deployment keeps replicas set by `scale` or an autoscaler. `restart` replaces its pods.
        """
        spec, config = dict(wanted["spec"]), workload.config
        in_file = {WORKERS: str(config.scale.min)} if config.on_demand and not is_stopped else {}
        if "suspend" in spec:
            spec["suspend"] = config.disabled or is_stopped
        elif "replicas" in spec and is_stopped:
            spec["replicas"] = 0
        elif "replicas" in spec and (live := workload.workers_override) is not None:
            spec["replicas"] = live
        elif "replicas" in spec and config.on_demand:
            spec["replicas"] = config.scale.min
        again = workload.restarted_at
        if restart and wanted["kind"] == "Deployment":
            again = datetime.now(UTC).isoformat(timespec="milliseconds")
        metadata: Table = {
            **wanted["metadata"],
            "annotations": {
                **wanted["metadata"].get("annotations", {}),
                **(in_file if "replicas" in spec else {}),
                APPLIED: digest_of({"objects": self.compiled.objects[wanted["metadata"]["labels"][SERVER]]}),
            },
        }
        return with_revision({**wanted, "metadata": metadata, "spec": spec}, again)

    async def stop(self, call: VerbArguments) -> Result:
        """Stop the selected servers, their dependents first."""
        found = await self.refresh()
        chosen = self._selected(call, found)
        needed_by: dict[str, list[str]] = {}
        for each in self._config:
            for on in each.depends_on:
                needed_by.setdefault(on.name, []).append(each.name)
        names, open_names = list(chosen), list(chosen)
        while open_names and call.options.get("deps", True):
            of = open_names.pop()
            for name in needed_by.get(of, ()):
                if name not in names and not found[name].is_stopped:
                    warning = f"stopping {name} as well, which depends on {of}"
                    call.progress(to_json(ProgressLine(warning=warning)))
                    names.insert(0, name)
                    open_names.append(name)
        active = [name for name in names if not found[name].is_stopped]
        await asyncio.gather(*(self._stop(found[name]) for name in active))
        late: list[str] = []
        if call.options.get("wait", True):
            await self.refresh()
            async with self.watching():
                late = await self.wait_until(call, active, _is_gone)
        also = tuple(name for name in active if name not in chosen)
        unchanged = tuple(name for name in chosen if name not in active)
        result = self._result(chosen, PoolStopError, late=late)
        return ClusterServersResult(
            items=result.items,  # type: ignore[arg-type]
            errors=result.errors,
            exit_code=result.exit_code,
            dependents=also or None,
            unchanged=unchanged or None,
        )

    async def _stop(self, workload: Workload) -> None:
        name = workload.found["metadata"]["name"] if workload.found else ""
        async with self._turns:
            if isinstance(workload, ScheduledWorkload):
                changes = {"metadata": {"annotations": {STOPPED: "true"}}, "spec": {"suspend": True}}
                await self._cluster.patch("CronJob", name, changes)
                for run in workload.runs_in_progress:
                    await self._cluster.delete("Job", run.job)
            elif workload.config.job:
                await self._cluster.delete("Job", name)
            else:
                annotations = {"metadata": {"annotations": {STOPPED: "true"}}, "spec": {"replicas": 0}}
                await self._cluster.patch("Deployment", name, annotations)

    async def scale(self, call: VerbArguments) -> Result:
        """Set the number of workers; it applies until the number in the file changes."""
        workers = call.options.get("workers")
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise SelectorError(f"workers is {workers!r}, not a number of them", hint="a whole number from 1")
        found = await self.refresh()
        chosen = self._selected(call, found)
        refused, able = [], []
        for name in chosen:
            config = found[name].config
            if config.job or config.scale.is_automatic:
                why = (
                    "is a job"
                    if config.job
                    else "is scaled by its triggers: change scale.min and scale.max in the file"
                )
                refused.append(_error(found[name], PoolStartError, why))
            elif found[name].is_stopped:
                refused.append(_error(found[name], PoolStartError, "is not running", f"poolctl start {name}"))
            else:
                able.append(name)
        await asyncio.gather(*(self._scale(found[name], workers) for name in able))
        bringing = _OrderedBringUp(self, call, PoolStartError)
        await self.refresh()
        async with self.watching():
            await bringing.await_all(able)
        return self._result(chosen, PoolStartError, late=bringing.late, errors=[*refused, *bringing.errors])

    async def _scale(self, workload: Workload, workers: int) -> None:
        assert workload.found is not None  # it runs
        deployment = workload.found["metadata"]["name"]
        async with self._turns:
            await self._cluster.patch("Deployment", deployment, {"spec": {"replicas": workers}})

    async def reload(self, call: VerbArguments) -> Result:
        """Make the cluster match the files: apply changed servers, remove servers that are no longer in the files."""
        found = await self.refresh()
        if not self._has_schedules:  # a server that is no longer in the file may have one
            for each in await self._list_if_allowed("CronJob"):
                self._objects["CronJob"][each["metadata"]["name"]] = each
        needed = self._resting_dependencies(found)
        changes, gone = self._changes_with_removed_names(found, needed)
        planned = (*changes, *self._route_changes(await self._list_deployed_routes()))
        if call.options.get("dry_run"):
            return ReloadResult(changes=planned, exit_code=NOT_AS_DESIRED if planned else 0)
        names = [each.name for each in changes if each.change != Kind.REMOVE]
        names += [name for name in needed if name not in names]
        runnable = [name for name in self._with_dependencies(names, found, call) if name in names]
        await self._refuse_foreign(runnable, found)
        bringing = _OrderedBringUp(self, call, PoolRestartError)
        stopped = {
            name
            for name in runnable
            if name not in needed and (STOPPED in found[name].annotations or found[name].rests_until_named)
        }
        async with self.watching():
            await bringing.apply_and_wait(runnable, frozenset(), stopped=stopped)
            await self._reconcile_routes(call, bringing)
        for name in gone:
            await self._remove(name)
        await self._delete_obsolete_objects_of(bringing.done)
        await self._delete_unused_configuration()
        result = self._result(list(found), PoolRestartError, late=bringing.late, errors=bringing.errors)
        return ReloadResult(
            items=result.items,
            errors=result.errors,
            exit_code=result.exit_code,
            warnings=result.warnings,
            changes=planned,
        )

    def _resting_dependencies(self, found: Mapping[str, Workload]) -> set[str]:
        """The stopped servers that start on demand, and on which a server depends that runs or that a reload starts."""
        needed: set[str] = set()
        open_names = [name for name, workload in found.items() if workload.is_wanted]
        while open_names:
            names = {each.name for each in found[open_names.pop()].config.depends_on}
            for name in (names & found.keys()) - needed:
                config = found[name].config
                if config.on_demand and not config.disabled and found[name].is_stopped:
                    needed.add(name)
                    open_names.append(name)
        return needed

    def _changes_with_removed_names(
        self, found: Mapping[str, Workload], needed: Collection[str]
    ) -> tuple[list[PlannedChange], list[str]]:
        """The changes that a reload would make, and the names of the servers that it would remove.

        `needed` are those that start on demand and that it would start (see `_resting_dependencies`).
        """
        deployed = dict.fromkeys(
            server_of(each) for kind in _WORKLOADS for each in self._objects[kind].values()
        )
        gone = [name for name in deployed if name and name not in found]
        changes = [_change(Kind.REMOVE, name, "is not in the file any more") for name in gone]
        for name, workload in found.items():
            objects = self.compiled.objects[name]
            rests = workload.rests_until_named and name not in needed
            main = next(each for each in objects if each["kind"] in _WORKLOADS)
            if workload.found is None:
                if not (workload.config.disabled or rests):
                    changes.append(_change(Kind.ADD, name, "is new"))
            elif main["kind"] == "Job":
                if not (rests or workload.is_named(main["metadata"]["name"])):
                    changes.append(_change(Kind.RESTART, name, "has changed: the job runs again"))
            elif workload.annotations.get(APPLIED) != digest_of({"objects": objects}):
                wanted, there = (
                    template_owner(each["spec"])["template"]["metadata"].get("labels")
                    for each in (with_revision(main, workload.restarted_at), workload.found)
                )
                is_same = wanted == there or isinstance(workload, ScheduledWorkload)
                kind, what = (
                    (Kind.UPDATE, "its workers stay")
                    if is_same
                    else (Kind.RESTART, "its workers are replaced")
                )
                changes.append(_change(kind, name, f"has changed: {what}"))
        return changes, gone

    async def _list_deployed_routes(self) -> dict[tuple[str, str], Table]:
        """The pool's routes on the cluster, by kind and name."""
        return {
            (kind, each["metadata"]["name"]): each
            for kind in _ROUTES
            for each in await self._list_if_allowed(kind)
        }

    def _route_changes(self, there: Mapping[tuple[str, str], Table]) -> list[PlannedChange]:
        changes: list[PlannedChange] = []
        for route in self.compiled.routes:
            found = there.get(_key(route.object))
            if found is None or _is_changed(route.object, found):
                what = "is new" if found is None else "has changed"
                changes.append(_change(Kind.UPDATE, "route", f"{route.alias} {what}"))
        wanted = {_key(route.object) for route in self.compiled.routes}
        gone = [name for kind, name in there if (kind, name) not in wanted]
        changes += [_change(Kind.UPDATE, "route", f"{name} is not in the file any more") for name in gone]
        return changes

    async def _reconcile_routes(self, call: VerbArguments, bringing: _OrderedBringUp) -> None:
        """Apply the changed routes whose servers have not failed, and delete routes that are no longer in the file.

        Raises ControlError (8) if another owner's object has the name of a route's object.
        """
        there = await self._list_deployed_routes()
        for route in self.compiled.routes:
            kind, called = _key(route.object)
            found = there.pop((kind, called), None)
            if not bringing.not_ready.isdisjoint(route.servers):
                continue
            if found is None and await self._cluster.find(kind, called) is not None:
                raise self._name_conflict(kind, called)
            if found is None or _is_changed(route.object, found):
                annotations = {APPLIED: digest_of({"object": route.object})}
                metadata = {**route.object["metadata"], "annotations": annotations}
                force = bool(call.options.get("force"))
                try:
                    await self._apply_resolving_own_conflicts(
                        {**route.object, "metadata": metadata}, force=force
                    )
                except NotFound as error:
                    message = f"the route {route.alias} cannot be applied: {error.message}"
                    raise ControlError(message, exit_code=FAILED, hint=_NO_ROUTES) from None
        for kind, called in there:
            await self._cluster.delete(kind, called)

    def _name_conflict(self, kind: str, called: str) -> ControlError:
        message = f"{kind} {called} in namespace {self._cluster.namespace} belongs to something else"
        hint = "rename the server, use another namespace, or delete that object"
        return ControlError(message, exit_code=CONFLICT, hint=hint)

    async def _remove(self, name: str) -> None:
        """Delete every object of a server."""
        for kind in KINDS:
            if kind not in ("ReplicaSet", "Pod"):
                for each in await self._list_if_allowed(kind, {SERVER: name}):
                    await self._cluster.delete(kind, each["metadata"]["name"])

    async def _list_if_allowed(self, kind: str, labels: Mapping[str, str] = EMPTY) -> list[Table]:
        """The pool's objects of this kind; [] if the cluster does not have the kind. Raises ControlError.

        If listing is not permitted, but the pool uses no such object, returns []: its Role need not have the kind.
        """
        try:
            return (await self._cluster.list(kind, {**self._labels, **labels}))[0]
        except NotFound:
            return []
        except ControlError as error:
            objects = itertools.chain(*self.compiled.objects.values())
            routes = (route.object for route in self.compiled.routes)
            uses = any(each["kind"] == kind for each in (*objects, *routes))
            if error.exit_code != NOT_PERMITTED or uses:
                raise
            return []

    async def _delete_obsolete_objects_of(self, names: Collection[str]) -> None:
        """Delete objects of these servers that their configuration no longer has, such as an autoscaler or Service."""
        wanted = {
            (each["kind"], each["metadata"]["name"]) for name in names for each in self.compiled.objects[name]
        }
        for kind in _PRUNED:
            for each in await self._list_if_allowed(kind):
                called = each["metadata"]["name"]
                if server_of(each) in names and (kind, called) not in wanted:
                    await self._cluster.delete(kind, called)

    async def _delete_unused_configuration(self) -> None:
        """Delete the ConfigMaps and Secrets of revisions that can no longer be rolled back to."""
        used: set[str] = set()
        for kind in (*_WORKLOADS, "ReplicaSet"):
            for each in await self._list_if_allowed(kind):
                used |= _configuration_object_names(template_owner(each["spec"])["template"]["spec"])
        for kind in ("ConfigMap", "Secret"):
            for each in (await self._cluster.list(kind, self._labels))[0]:
                if each["metadata"]["name"] not in used:
                    await self._cluster.delete(kind, each["metadata"]["name"])

    # Answers

    def _result(
        self,
        names: Iterable[str],
        kind: type[PoolError],
        *,
        late: Sequence[str] = (),
        errors: Sequence[ErrorEntry] = (),
        waited_for: str = "",
    ) -> Result:
        found, now = self.workloads(), time.time()
        problems = [*errors]
        for name in late:
            workload = found[name]
            state = in_words(workload.item(now).state)
            why = workload.failure()
            message = f"is {state}, {waited_for}" if waited_for else f"is still {state}"
            message += f": {why.message}" if why else ""
            problems.append(_error(workload, kind, message, why.hint if why else f"poolctl logs {name}"))
        code = TIMED_OUT if late else FAILED if problems else 0
        warnings = tuple(self._compiled.warnings) if self._compiled is not None else ()
        return ClusterServersResult(
            items=self._items(found, names), errors=tuple(problems), exit_code=code, warnings=warnings
        )


class _OrderedBringUp:
    """Brings up servers, dependencies first.

    A server that has pods keeps them until its dependencies are ready, and is applied then. A server without pods is
    applied at once: its init container waits for the dependencies while the nodes fetch its image.
    """

    def __init__(self, pool: _ClusterPool, call: VerbArguments, kind: type[PoolError]) -> None:
        self._pool = pool
        self._call = call
        self._kind = kind
        self.errors: list[ErrorEntry] = []
        self.late: list[str] = []
        self._generations: dict[str, int] = {}  # by server: the generation that was applied
        self._needed: dict[str, list[str]] = {}  # by server: its direct and indirect dependencies
        self._over: set[str] = set()
        self._deadlines: dict[str, float] = {}
        self._failing_since: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._runs: dict[str, str] = {}  # the Jobs of scheduled jobs that run now

    async def apply_and_wait(
        self, names: Sequence[str], restart: frozenset[str] | set[str], *, stopped: Iterable[str] = ()
    ) -> None:
        """Apply servers and wait until all are up. Servers in `restart` get new pods; servers in `stopped` get none."""
        waits, still = self._call.options.get("wait", True), set(stopped)
        servers = self._pool.compiled.servers
        applying: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            for name in names:
                depends_on = servers[name].depends_on
                direct = {on.name for on in depends_on if on.condition != "started"}.intersection(names)
                needed = [
                    each for each in names if each in direct or any(each in self._needed[on] for on in direct)
                ]
                self._needed[name] = needed if waits else []
                waits_in_pod = all(servers[on].listens for on in direct)
                if waits and needed and not (waits_in_pod and not self._pool.workloads()[name].pods):
                    await asyncio.gather(*(applying[on] for on in needed if on in applying))
                    await self._pool.wait_until(self._call, needed, self._note_if_over)
                if not self._fail_if_blocked(name):
                    work = self._apply(name, restart=name in restart, is_stopped=name in still)
                    applying[name] = group.create_task(work)
        if waits:
            await self.await_all([name for name in applying if name not in still])

    async def _apply(self, name: str, *, restart: bool, is_stopped: bool) -> None:
        force = bool(self._call.options.get("force"))
        self._generations[name] = await self._pool.apply_and_get_generation(
            name, restart=restart, force=force, is_stopped=is_stopped
        )
        if self._pool.compiled.servers[name].every is not None and restart:
            self._runs[name] = await self._pool.run_now(name)

    @property
    def not_ready(self) -> frozenset[str]:
        """The servers that have failed or exceeded a time limit."""
        return frozenset((*self._failed, *self.late))

    @property
    def done(self) -> frozenset[str]:
        """The servers that were applied, and have neither failed nor exceeded a time limit."""
        return frozenset(self._generations) - self.not_ready

    async def await_all(self, names: Sequence[str]) -> None:
        """Wait until each server is as applied or has failed; set `late` to the servers that exceed the timeout."""
        self.late = await self._pool.wait_until(self._call, names, self._note_if_over)

    def _note_if_over(self, workload: Workload) -> bool:
        """Whether the server is complete or has failed."""
        if not self._record_result(workload):
            return False
        self._over.add(workload.config.name)
        return True

    def _record_result(self, workload: Workload) -> bool:
        name = workload.config.name
        if name in self._failed or self._fail_if_blocked(name):
            return True
        if workload.generation < self._generations.get(name, 0):
            return False  # the watch has not reported the change yet
        if isinstance(workload, ScheduledWorkload):
            return self._record_job_result(workload)
        if workload.has_reached_goal:
            return True
        now = time.monotonic()
        if name in self._generations and self._over.issuperset(self._needed[name]):
            self._deadlines.setdefault(name, now + workload.config.start_timeout)
        if (why := workload.failure()) is None:
            self._failing_since.pop(name, None)
        elif not why.may_pass or now - self._failing_since.setdefault(name, now) >= _PASSING_SECONDS:
            self._fail(name, why.message, why.hint)
        if name not in self._failed and now >= self._deadlines.get(name, float("inf")):
            seconds = f"{workload.config.start_timeout:g} s"
            self._fail(name, f"was not ready within its start_timeout of {seconds}", f"poolctl logs {name}")
        return name in self._failed

    def _fail_if_blocked(self, name: str) -> bool:
        """Whether a dependency that the server waits for has failed; the server then fails, too."""
        blocker = next((on for on in self._needed.get(name, ()) if on in self._failed), None)
        if blocker is not None:
            self._fail(name, f"waits for {blocker}: {self._failed[blocker]}", f"poolctl logs {blocker}")
        return blocker is not None

    def _record_job_result(self, workload: ScheduledWorkload) -> bool:
        """Return whether the run begun by a restart has ended; without a restart, whether the CronJob is active."""
        job, name = self._runs.get(workload.config.name), workload.config.name
        if job is None:
            return workload.has_reached_goal
        run = workload.run(job)
        why = Problem("its run was ended", f"poolctl restart {name}") if run is None else run.failure
        if why is not None:
            self._fail(name, why.message, why.hint)
        return run is None or why is not None or bool(run.ended)

    def _fail(self, name: str, message: str, hint: str) -> None:
        self._failed[name] = message
        self.errors.append(_error(self._pool.workloads()[name], self._kind, message, hint))


def _with_default_expose_url(server: ServerConfig) -> ServerConfig:
    """The server, with the URL of its Service as the default for `expose`; its bind address is not changed."""
    if not (server.listens and server.derived_expose):
        return server
    return server.with_values(expose=server.at(parse(f"{server.name}:{server.address.port}")).expose)


def _is_named(workload: Workload, call: VerbArguments) -> bool:
    """Whether the user selected this server by its name or address, and not by a pattern."""
    return call.selector.names(workload.config.name, workload.config.key)


def _is_gone(workload: Workload) -> bool:
    return workload.is_stopped and all(each.is_lost or each.has_ended for each in workload.pods)


def _is_own_conflict(message: str) -> bool:
    """Whether all conflicting fields were set by poolctl's own field managers."""
    owners = [part.partition('"')[0] for part in message.split('conflict with "')[1:]]
    return bool(owners) and all(owner == "poolctl" for owner in owners)


def _configuration_object_names(pod: Table) -> set[str]:
    """The names of ConfigMaps and Secrets that a pod uses."""
    names = {str(each["configMap"]["name"]) for each in pod.get("volumes") or () if "configMap" in each}
    for container in pod.get("containers") or ():
        names |= {
            str(each["secretRef"]["name"]) for each in container.get("envFrom") or () if "secretRef" in each
        }
    return names


def _stop_hint(name: str) -> str:
    return f"wait until it has ended, or end it: poolctl stop {name}"


def _key(found: Table) -> tuple[str, str]:
    return str(found["kind"]), str(found["metadata"]["name"])


def _is_changed(route: Table, found: Table) -> bool:
    """Whether the route differs from the one that was applied last."""
    applied = (found["metadata"].get("annotations") or {}).get(APPLIED)
    return bool(applied != digest_of({"object": route}))


def _change(kind: Kind, name: str, message: str) -> PlannedChange:
    return PlannedChange(name=name, bind="", change=kind, message=message)


def _parse_log_line(pod: Pod, text: str) -> Table:
    """Parse a line of a pod's log, which begins with its time."""
    when, _, line = text.rstrip("\n").partition(" ")
    return {"name": pod.server, "time": stamp(seconds_of(f"{when[:26].rstrip('Z')}Z")), "line": line}


def _worker(pod: Pod) -> WorkerDetails:
    found = pod.details()
    restarts = f", restarted {found.restarts} times" if found.restarts else ""
    where = f"node {found.node or 'none yet'}, {found.address or 'no address yet'}{restarts}"
    health = "unknown" if pod.is_lost else "ok" if found.ready else "ko"
    return WorkerDetails(
        id=pod.name, pid=None, where=where, phase=found.phase, health=health, resting=False, probes=()
    )


def _error(workload: Workload, kind: type[PoolError], message: str, hint: str = "") -> ErrorEntry:
    config = workload.config
    return ErrorEntry(
        code=kind.code, error=kind.error, name=config.name, bind=config.key, message=message, hint=hint
    )


def _step_line(workload: Workload, item: ClusterServerItem, *, done: bool) -> Table:
    why = workload.failure()
    step = ServerProgress(
        name=item.name,
        bind=item.bind,
        state=item.state,
        ready=item.ready,
        message=why.message if why else "",
        done=done,
    )
    return to_json(ProgressLine(progress=step))
