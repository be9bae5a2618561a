"""Derives the states of a pool's servers from the cluster's objects. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from poolctl.config import ServerConfig
from poolctl.control.answers import Item, item_from_config
from poolctl.json_form import Table
from poolctl.states import State, Status
from poolctl.time_windows import next_time, parse_time_zone

_LABEL = "poolctl.dev"
POOL, SERVER, REVISION = f"{_LABEL}/pool", f"{_LABEL}/server", f"{_LABEL}/revision"
# Annotations of a Deployment: the digest and the number of workers that were applied last, and whether
# `stop` has stopped it.
APPLIED, WORKERS, STOPPED = f"{_LABEL}/applied", f"{_LABEL}/workers", f"{_LABEL}/stopped"
RESTARTED = f"{_LABEL}/restarted-at"  # annotation of its pods

# Reasons for which a container waits; unlike those of a normal start, these are problems.
_WAITING_PROBLEMS = frozenset((
    "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "ErrImageNeverPull", "InvalidImageName",
    "CreateContainerConfigError", "CreateContainerError", "RunContainerError",
))  # fmt: skip
_NO_IMAGE = "kubectl describe pod shows what the registry said; the image is a server's image, or that of [kubernetes]"


class Problem(NamedTuple):
    """Why a server does not become ready, and the fix; `may_pass` if it may be temporary."""

    message: str
    hint: str = ""
    may_pass: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDetails:
    """A pod, as commands show it in a server's list of workers."""

    id: str
    node: str
    address: str
    phase: str
    ready: bool
    restarts: int


@dataclass(frozen=True, kw_only=True)
class ClusterServerItem(Item):
    """A server with its workers on the cluster."""

    worker_list: tuple[PodDetails, ...] = ()


class Pod:
    """One pod of a server."""

    def __init__(self, found: Table) -> None:
        metadata, status = _member(found, "metadata"), _member(found, "status")
        labels = _member(metadata, "labels")
        self.name = str(metadata.get("name", ""))
        self.server = str(labels.get(SERVER, ""))
        self.revision = str(labels.get(REVISION, ""))
        self.job = str(labels.get("job-name", ""))
        self.node = str(_member(found, "spec").get("nodeName") or "")
        self.address = str(status.get("podIP") or "")
        self.phase = str(status.get("phase") or "Pending")
        self.is_leaving = "deletionTimestamp" in metadata
        containers = _tables(status.get("containerStatuses"))
        self._container = next((each for each in containers if each.get("name") == "server"), {})
        self._init = _tables(status.get("initContainerStatuses"))
        self._conditions = {str(each.get("type")): each for each in _tables(status.get("conditions"))}
        says_ready = self._conditions.get("Ready", {}).get("status") == "True"
        # When a node is lost, the node controller clears the Ready condition of its pods, and no kubelet updates
        # the container's status. This detects it without permission to read nodes.
        self.is_lost = bool(self._container.get("ready")) and not says_ready and self.phase == "Running"
        self.is_ready = says_ready and not self.is_leaving
        self.restarts = _number(self._container.get("restartCount"))
        self.ready_since = _epoch_seconds_or_none(self._conditions.get("Ready", {}).get("lastTransitionTime"))

    def details(self) -> PodDetails:
        """Return the pod's name, node, address, phase, readiness and restarts, for `list -o json` and `show`."""
        phase = "unknown" if self.is_lost else "stopping" if self.is_leaving else self.phase.lower()
        return PodDetails(
            id=self.name,
            node=self.node,
            address=self.address,
            phase=phase,
            ready=self.is_ready,
            restarts=self.restarts,
        )

    @property
    def has_ended(self) -> bool:
        """Whether the pod's process has ended, and will not be restarted."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def has_begun(self) -> bool:
        """Whether the pod's container has started, and may have written output."""
        state = _member(self._container, "state")
        return "running" in state or bool(self.last_exit())

    @property
    def keeps_failing(self) -> bool:
        """Whether the pod is in restart backoff (CrashLoopBackOff)."""
        return _waiting(self._container).get("reason") == "CrashLoopBackOff"

    def last_exit(self) -> Table:
        """How the container last terminated: exitCode, reason, message; empty if it never has."""
        ended = _member(_member(self._container, "state"), "terminated")
        return ended or _member(_member(self._container, "lastState"), "terminated")

    def problem(self) -> Problem | None:
        """Why this pod will not be ready soon; None if it is ready, is terminating, or may still become ready."""
        if self.is_ready or self.is_leaving:
            return None
        for container in (*self._init, self._container):
            waiting = _waiting(container)
            if waiting.get("reason") in _WAITING_PROBLEMS:
                message = f"{waiting['reason']}: {_one_line(waiting.get('message'))}".rstrip(": ")
                return Problem(
                    self._with_pod(message), _NO_IMAGE if "Image" in str(waiting["reason"]) else ""
                )
        ended = self.last_exit()
        if ended and (_number(ended.get("exitCode")) or self.keeps_failing):
            return Problem(self._with_pod(_exit_text(ended)), f"poolctl logs {self.server}")
        place = self._conditions.get("PodScheduled", {})
        if place.get("status") == "False" and place.get("reason") == "Unschedulable":
            hint = "give the cluster room, or ask for less with [kubernetes] requests"
            return Problem(f"no node can run it: {_one_line(place.get('message'))}", hint, may_pass=True)
        return None

    def _with_pod(self, message: str) -> str:
        return f"{message} (pod {self.name} on {self.node})" if self.node else f"{message} (pod {self.name})"


class Workload:
    """A server on the cluster: its Deployment or Job, and its pods."""

    def __init__(self, config: ServerConfig, found: Table | None, pods: Sequence[Pod]) -> None:
        self.config = config
        self.found = found
        metadata = _member(found or {}, "metadata")
        self.annotations = _member(metadata, "annotations")
        self._spec, self._status = _member(found or {}, "spec"), _member(found or {}, "status")
        template = _member(_member(template_owner(self._spec), "template"), "metadata")
        self.revision = str(_member(template, "labels").get(REVISION, ""))
        self.restarted_at = str(_member(template, "annotations").get(RESTARTED, ""))
        self.pods = list(pods)
        self.current = [each for each in self.pods if each.revision == self.revision]
        self.generation = _number(metadata.get("generation"))
        self._is_seen = _number(self._status.get("observedGeneration")) >= self.generation

    @property
    def desired_workers(self) -> int:
        """The desired number of workers (replicas)."""
        if self.found is None or self.config.job:
            return self.config.workers
        return _number(self._spec.get("replicas", 1))

    def is_named(self, name: str) -> bool:
        """Whether the server's Deployment or Job has this name."""
        return self.found is not None and _member(self.found, "metadata").get("name") == name

    @property
    def is_stopped(self) -> bool:
        """Whether no pod is wanted for this server."""
        if self.config.job:
            return self.found is None or self._spec.get("suspend") is True
        return self.found is None or self.desired_workers == 0

    @property
    def rests_until_named(self) -> bool:
        """Whether the server starts on demand and does not run, so that only its name or a dependent starts it."""
        has_ended = self.config.job and self.config.every is None and self.has_reached_goal
        return self.config.on_demand and (self.is_stopped or has_ended)

    @property
    def workers_override(self) -> int | None:
        """Return the number of workers if it was changed after the last apply. None if unchanged or if stopped."""
        applied = self.annotations.get(WORKERS)
        if (
            self.found is None
            or STOPPED in self.annotations
            or applied is None
            or str(self.desired_workers) == applied
        ):
            return None
        return self.desired_workers

    @property
    def has_reached_goal(self) -> bool:
        """Whether the wanted workers are available and no older revision is left; for a job: whether it succeeded."""
        if self.config.job:
            return _number(self._status.get("succeeded")) > 0
        if not self._is_seen:
            return False
        if self.desired_workers == 0:
            return not self.pods
        updated, available = (
            _number(self._status.get(name)) for name in ("updatedReplicas", "availableReplicas")
        )
        counted = _number(self._status.get("replicas"))
        lost = sum(each.is_lost for each in self.current)
        return (
            updated >= self.desired_workers
            and available - lost >= self.desired_workers
            and counted <= updated
        )

    def failure(self) -> Problem | None:
        """Why the newest revision cannot become ready; None while it still may."""
        for condition in _tables(self._status.get("conditions")):
            kind, holds = condition.get("type"), condition.get("status") == "True"
            if kind in ("ReplicaFailure", "Failed") and holds and (self._is_seen or self.config.job):
                if kind == "Failed" and (problem := self._problem_of_pods()):
                    return problem
                message = _one_line(condition.get("message")) or str(condition.get("reason"))
                return Problem(message, may_pass=kind == "ReplicaFailure")
            if kind == "Progressing" and not holds and self._is_seen:
                return self._problem_of_pods() or Problem(_one_line(condition.get("message")))
        return self._problem_of_pods()

    def _problem_of_pods(self) -> Problem | None:
        return next((found for each in self.current if (found := each.problem())), None)

    @property
    def is_wanted(self) -> bool:
        """Whether the server should be ready: not disabled in the file, stopped by `stop`, or at rest until named."""
        return not (self.config.disabled or STOPPED in self.annotations or self.rests_until_named)

    def item(self, now: float) -> ClusterServerItem:
        """The server as commands show it; without pids, since its processes run on other machines."""
        ready = [each for each in self.pods if each.is_ready]
        since = [each.ready_since for each in ready if each.ready_since is not None]
        done = self.config.job and self.has_reached_goal
        state = self._state(bool(ready))
        is_ready = done or (bool(ready) and state is State.RUNNING and not self.config.job)
        return ClusterServerItem(
            **{
                **vars(item_from_config(self.config)),
                "state": state,
                "ready": is_ready,
                "health": self._health(state, len(ready)),
                "workers": self.desired_workers or self.config.workers,
                "uptime_seconds": round(max(0.0, now - min(since)), 3)
                if since and is_ready and not done
                else 0.0,
                "restarts": sum(each.restarts for each in self.pods),
                "worker_list": tuple(each.details() for each in self.pods),
            }
        )

    def _state(self, has_ready: bool) -> State:
        if self.is_stopped:
            if any(not each.is_lost for each in self.pods) and not self.config.job:
                return State.STOPPING
            return State.DISABLED if self.config.disabled else State.STOPPED
        if self.config.job and self.has_reached_goal:
            return State.COMPLETED
        if has_ready:
            return State.RUNNING
        if self.config.job and any(each.phase == "Running" for each in self.pods):
            return State.RUNNING
        if self.failure() is None:
            return State.STARTING
        return State.FAILED if self.config.job else State.BACKOFF

    def _health(self, state: State, ready: int) -> str:
        if state in (State.FAILED, State.BACKOFF):
            return Status.KO
        if state is State.RUNNING and not self.config.job:
            return Status.OK if ready >= self.desired_workers else Status.WARN
        return Status.UNKNOWN


class Run(NamedTuple):
    """One run of a scheduled job: its Job's name, when it began and ended (or ""), why it failed, and its exit code."""

    job: str
    began: str
    ended: str = ""
    failure: Problem | None = None
    status: int | None = None


class ScheduledWorkload(Workload):
    """A scheduled job (`every` is set): its CronJob, the Jobs of its runs, and their pods."""

    def __init__(
        self, config: ServerConfig, found: Table | None, pods: Sequence[Pod], jobs: Iterable[Table]
    ) -> None:
        super().__init__(config, found, pods)
        runs = [self._run_from_job(each) for each in jobs]
        self.runs_in_progress = [each for each in runs if not each.ended]
        self.ended_runs = sorted((each for each in runs if each.ended), key=lambda run: run.ended)

    def _run_from_job(self, job: Table) -> Run:
        """Return the run that this Job stands for. A run that has not ended has a `failure` if its pod cannot start."""
        metadata, status = _member(job, "metadata"), _member(job, "status")
        name = str(metadata.get("name", ""))
        began = str(status.get("startTime") or metadata.get("creationTimestamp") or "")
        over = {
            str(each.get("type")): each
            for each in _tables(status.get("conditions"))
            if each.get("status") == "True"
        }
        exits = [each.last_exit() for each in self.pods if each.job == name]
        code = next((_number(each.get("exitCode")) for each in exits if each), None)
        if condition := over.get("Failed"):
            said = next((_exit_text(each) for each in exits if each), "") or _one_line(
                condition.get("message")
            )
            ended = str(condition.get("lastTransitionTime") or began)
            return Run(
                name, began, ended, Problem(said or "failed", f"poolctl logs {self.config.name}"), code
            )
        if "Complete" in over or _number(status.get("succeeded")):
            return Run(name, began, str(status.get("completionTime") or began), None, code)
        problems = (each.problem() for each in self.pods if each.job == name and not each.has_ended)
        return Run(name, began, failure=next(filter(None, problems), None))

    def run(self, job: str) -> Run | None:
        """The run of this Job, or None if there is no such Job."""
        return next((each for each in (*self.runs_in_progress, *self.ended_runs) if each.job == job), None)

    @property
    def is_stopped(self) -> bool:
        """Whether the CronJob is missing or suspended, so that no further run begins."""
        return self.found is None or bool(self._spec.get("suspend"))

    @property
    def has_reached_goal(self) -> bool:
        """Return whether the CronJob exists and is not suspended, even if no run has completed yet."""
        return not self.is_stopped

    def failure(self) -> Problem | None:
        """Return why the pod of a current run cannot start, or else why the last ended run failed; else None."""
        if problem := next((each.failure for each in self.runs_in_progress if each.failure), None):
            return problem
        last = self.ended_runs[-1] if self.ended_runs else None
        if last is None or last.failure is None:
            return None
        return Problem(f"its last run failed ({last.began}): {last.failure.message}", last.failure.hint)

    def item(self, now: float) -> ClusterServerItem:
        """Return the server as commands show it. Between runs of the CronJob, the server is sleeping and ready."""
        active = [each for each in self.pods if not each.has_ended]
        runs = bool(active or self.runs_in_progress)
        if self.is_stopped:
            at_rest = State.DISABLED if self.config.disabled else State.STOPPED
            state, health, planned = State.STOPPING if runs else at_rest, Status.UNKNOWN, None
        else:
            state = State.RUNNING if runs else State.SLEEPING
            health = Status.OK if self.failure() is None else Status.WARN
            zone = parse_time_zone(str(self._spec.get("timeZone") or "Etc/UTC"))
            planned = next_time(str(self.config.every), now, zone)
        return ClusterServerItem(
            **{
                **vars(item_from_config(self.config)),
                "state": state,
                "ready": not self.is_stopped,
                "health": health,
                "restarts": 0,
                "next_run_at": None if planned is None else _timestamp(planned),
                "last_run": self._last_run(),
                "worker_list": tuple(each.details() for each in active),
            }
        )

    def _last_run(self) -> Table | None:
        if not self.ended_runs:
            return None
        run = self.ended_runs[-1]
        return {
            "result": "failed" if run.failure else "succeeded",
            "started_at": run.began,
            "ended_at": run.ended,
            "status": run.status,
            "signal": None,
            "message": run.failure.message if run.failure else "",
        }


def workloads(
    servers: Iterable[ServerConfig],
    deployments: Iterable[Table],
    jobs: Iterable[Table],
    pods: Iterable[Table],
    cron_jobs: Iterable[Table] = (),
) -> dict[str, Workload]:
    """The servers with their objects on the cluster, by name, in the given order."""
    of_apps: dict[str, Table] = {server_of(each): each for each in deployments}
    runs: dict[str, list[Table]] = {}
    for each in jobs:
        runs.setdefault(server_of(each), []).append(each)
    # A job has a new name with each change: the newest one counts.
    of_jobs = {
        name: max(each_run, key=lambda job: str(_member(job, "metadata").get("creationTimestamp", "")))
        for name, each_run in runs.items()
    }
    by_server: dict[str, list[Pod]] = {}
    for pod in map(Pod, pods):
        if not pod.has_ended or pod.server in runs:
            by_server.setdefault(pod.server, []).append(pod)
    schedules: dict[str, Table] = {server_of(each): each for each in cron_jobs}

    def workload(server: ServerConfig) -> Workload:
        name = server.name
        of_server = by_server.get(name, [])
        if server.every is not None:
            return ScheduledWorkload(server, schedules.get(name), of_server, runs.get(name, ()))
        return Workload(server, (of_jobs if server.job else of_apps).get(name), of_server)

    return {each.name: workload(each) for each in servers}


def server_of(found: Mapping[str, object]) -> str:
    """The name of the server that an object belongs to."""
    return str(_member(_member(found, "metadata"), "labels").get(SERVER, ""))


def template_owner(spec: Table) -> Table:
    """The spec that contains the template of the pods: in a CronJob the spec of its Jobs, else `spec` itself."""
    return _member(_member(spec, "jobTemplate"), "spec") or spec


def _exit_text(ended: Table) -> str:
    code, reason = _number(ended.get("exitCode")), str(ended.get("reason") or "")
    lines = [line for line in str(ended.get("message") or "").splitlines() if line.strip()]
    said = f": {lines[-1].strip()}" if lines else ""
    how = f"exited with status {code}" if reason in ("", "Error", "Completed") else f"{reason}, status {code}"
    return how + said


def _waiting(container: Mapping[str, object]) -> Table:
    return _member(_member(container, "state"), "waiting")


def _member(table: Mapping[str, object], name: str) -> Table:
    """The member of this name if it is a dictionary, else an empty dictionary."""
    found = table.get(name)
    return found if isinstance(found, dict) else {}


def _tables(found: object) -> list[Table]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _number(found: object) -> int:
    return found if isinstance(found, int) else 0


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split())


def _timestamp(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _epoch_seconds_or_none(text: object) -> float | None:
    """An API timestamp (RFC 3339) in seconds since the epoch; None for anything else."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
