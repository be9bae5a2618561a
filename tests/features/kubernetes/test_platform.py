"""Commands on a cluster: what they apply, wait for and report, over a stand-in for the API server."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.outcome import Failure
from poolctl.config import load
from poolctl.control.answers import Result, failure
from poolctl.control.pool_paths import STATE_VARIABLE
from poolctl.errors import ControlError, PoolParamError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.features.kubernetes import platform
from poolctl.features.kubernetes._cluster import Cluster, NotFound
from poolctl.features.kubernetes._compile import compile_pool
from poolctl.features.kubernetes.platform import (
    KubernetesPlatform,
    VerbArguments,
    _ClusterPool,
    not_on_a_cluster,
)
from poolctl.json_form import Table, to_json
from poolctl.selection.selector import NothingMatched, Selector, SelectorError
from tests.configuration import server
from tests.needs import needs

POOL = '[pool]\nname = "shop"\n[kubernetes]\nimage = "shop:1"\n'
FIELDS = "poolctl.dev"
APPS = ("Deployment", "Job", "CronJob")


def app(name: str, port: int = 8000, **keys: Any) -> str:
    return server(name, bind=f"127.0.0.1:{port}", app=f"{name}:app", **keys)


WEB, API = app("web", depends_on=["api"]), app("api", 8001)


def merged(table: Table, changes: Table) -> Table:
    found = {**table}
    for key, value in changes.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key) or {}, value) if isinstance(value, dict) else value
    return found


class Api(Cluster):
    """An API server with controllers that are done at once; servers in `failing` never get ready.

    `done` are the changes, as "VERB KIND NAME".
    """

    def __init__(self) -> None:
        self.url, self.context, self.namespace = "https://api", "minikube", "default"
        self.objects: dict[tuple[str, str], Table] = {}
        self.done: list[str] = []
        self.failing: dict[str, Table] = {}
        self.errors: dict[str, ControlError] = {}  # by "VERB KIND"
        self.logs: dict[str, list[str]] = {}
        self._events: list[tuple[str, Table]] = []  # which watches replay
        self._watches: set[asyncio.Event] = set()
        self.keeps_pods = False  # those of a stopped server take long to end
        self.watches = True  # whether they bring anything
        self.oldest = 0  # a watch of an earlier version ends at once

    async def __aexit__(self, *raised: object) -> None:
        pass

    def add(self, found: Table, event: str = "ADDED") -> None:
        """Add an object that something else has created."""
        self.objects[found["kind"], found["metadata"]["name"]] = found
        self._publish(event, found)

    def _publish(self, event: str, found: Table) -> None:
        self._events.append((event, copy.deepcopy(found)))
        for watch in self._watches:
            watch.set()

    def names(self, kind: str) -> list[str]:
        return [name for each, name in self.objects if each == kind]

    def _refuse(self, what: str) -> None:
        if error := self.errors.get(what):
            raise error

    async def list(self, kind: str, labels: Mapping[str, str]) -> tuple[list[Table], str]:
        self._refuse(f"list {kind}")
        return [
            copy.deepcopy(found)
            for (each, _), found in self.objects.items()
            if each == kind and labels.items() <= (found["metadata"].get("labels") or {}).items()
        ], str(len(self._events))

    async def find(self, kind: str, name: str) -> Table | None:
        return copy.deepcopy(self.objects.get((kind, name)))

    async def apply(self, wanted: Table, *, force: bool) -> Table:
        kind, name = wanted["kind"], wanted["metadata"]["name"]
        if not force:
            self._refuse(f"apply {kind}")
        self.done.append(f"apply {kind} {name}{' by force' if force else ''}")
        return self._store(merged(self.objects.get((kind, name), {}), wanted))

    async def patch(self, kind: str, name: str, changes: Table) -> Table:
        self.done.append(f"patch {kind} {name}")
        return self._store(merged(self.objects[kind, name], changes))

    async def delete(self, kind: str, name: str) -> None:
        self.done.append(f"delete {kind} {name}")
        if (found := self.objects.pop((kind, name), None)) is not None:
            self._publish("DELETED", found)
        self._remove_pods(name)

    async def watch(
        self, kind: str, labels: Mapping[str, str], version: str
    ) -> AsyncIterator[tuple[str, Table]]:
        at, news = int(version), asyncio.Event()
        self._watches.add(news)
        try:
            while at >= self.oldest:
                for event, found in self._events[at:] if self.watches else ():
                    at += 1
                    if found["kind"] == kind:
                        yield event, copy.deepcopy(found)
                news.clear()
                await news.wait()
        finally:
            self._watches.discard(news)

    async def log(
        self, pod: str, *, lines: int | None, since_seconds: int | None, follow: bool
    ) -> AsyncIterator[str]:
        self.done.append(f"log {pod} {lines} {since_seconds}")
        for line in self.logs.get(pod, ()):
            yield line

    def _store(self, found: Table) -> Table:
        kind, metadata = found["kind"], found["metadata"]
        before = found.get("status", {})
        metadata |= {"generation": metadata.get("generation", 0) + 1, "uid": f"{kind} {metadata['name']}"}
        if kind == "Deployment":
            self._roll(found)
        elif kind == "Job" and not found["spec"].get("suspend"):
            at = "2026-01-01T00:00:01Z"
            failed = {
                "type": "Failed",
                "status": "True",
                "message": "it has failed",
                "lastTransitionTime": at,
            }
            is_failing = metadata["labels"][f"{FIELDS}/server"] in self.failing
            found["status"] = (
                {"conditions": [failed]} if is_failing else {"succeeded": 1, "completionTime": at}
            )
        self.add(found, "MODIFIED")
        return copy.deepcopy({**found, "status": before})  # controllers act afterwards

    def _roll(self, found: Table) -> None:
        """Replace the pods of a Deployment by those of its newest revision."""
        name, template = found["metadata"]["name"], found["spec"]["template"]
        count, container = found["spec"].get("replicas", 1), self.failing.get(name.removeprefix("shop-"))
        if count or not self.keeps_pods:
            self._remove_pods(name)
        ready = 0 if container else count
        found["status"] = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": count, "updatedReplicas": count, "availableReplicas": ready,
        }  # fmt: skip
        for number in range(count):
            self.add(pod(f"{name}-{number}", template["metadata"]["labels"], container))

    def _remove_pods(self, owner: str) -> None:
        for kind, name in [*self.objects]:
            if kind == "Pod" and name.startswith(f"{owner}-"):
                self._publish("DELETED", self.objects.pop((kind, name)))


def pod(name: str, labels: Table, container: Table | None = None) -> Table:
    status = {"name": "server", "ready": container is None, "state": {"running": {}}, **(container or {})}
    conditions = [{"type": "Ready", "status": str(container is None)}]
    if unschedulable := status.pop("unschedulable", ""):
        conditions = [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        ]
    return {
        "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status]},
    }  # fmt: skip


CRASHED: Table = {
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 3, "message": "no database"}},
}
NO_DATABASE = "exited with status 3: no database (pod shop-api-0 on node-1)"


class Stage:
    """A pool on the stand-in; each command reads the file again."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "pool.toml"
        self.api = Api()
        self.progress: list[Table] = []
        self.on_progress: Callable[[Table], None] = lambda line: None

    def report(self, line: Table) -> None:
        self.progress.append(line)
        self.on_progress(line)

    def write(self, *tables: str, pool: str = POOL) -> None:
        self.path.write_text("\n".join((pool, *tables)))

    def do(self, verb: str, *targets: str, timeout: float | None = 30, **options: Any) -> Result:
        self.api.done.clear()
        self.progress.clear()
        selector = Selector.from_dict({"targets": list(targets)})
        selector.matched = None
        config = load([str(self.path)])
        assert not config.problems
        pool = _ClusterPool(self.api, config, [str(self.path)])
        call = VerbArguments(selector, options, self.report, timeout)
        try:
            return asyncio.run(getattr(pool, verb)(call))  # type: ignore[no-any-return]
        except NothingMatched as nothing:
            error = failure(PoolParamError, nothing.message, nothing.hint)
            return Result(errors=(error,), exit_code=NOTHING_MATCHED)

    def applied(self, *kinds: str) -> list[str]:
        """The changes of objects of these kinds (default: those that make pods)."""
        return [each for each in self.api.done if each.split()[1] in (kinds or APPS)]

    @property
    def warnings(self) -> list[str]:
        return [each["warning"] for each in self.progress if "warning" in each]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(platform, "_TICK_SECONDS", 0.001)
    return Stage(tmp_path)


def states(result: Result) -> dict[str, str]:
    return {each.name: each.state for each in result.items}


def errors(result: Result) -> list[tuple[str, str, str]]:
    return [(each.name, each.message, each.hint) for each in result.errors]


def test_start_brings_up_dependencies_first_and_reports_each_server(stage: Stage) -> None:
    stage.write(WEB, API, app("other", 8002))
    result = stage.do("start", "web")
    assert stage.applied() == ["apply Deployment shop-api", "apply Deployment shop-web"]
    assert (states(result), result.errors, result.exit_code) == ({"web": "running"}, (), 0)
    steps = [each["progress"] for each in stage.progress]
    assert [(each["name"], each["done"]) for each in steps[-2:]] == [("api", True), ("web", True)]
    alone = stage.do("start", "other", deps=False)
    assert (stage.applied(), states(alone)) == (["apply Deployment shop-other"], {"other": "running"})


def test_no_server_is_delayed_by_the_requests_for_another_one(stage: Stage) -> None:
    names = ["api", "orders", "stock", "users"]
    stage.write(*(app(name, 8001 + at) for at, name in enumerate(names)))

    def waits_for_others(request: Any, is_meant: Callable[[Any], bool]) -> Any:
        begun = asyncio.Barrier(len(names))

        async def wait(what: Any, *rest: Any, **options: Any) -> Any:
            if is_meant(what):
                async with asyncio.timeout(60):
                    await begun.wait()
            return await request(what, *rest, **options)

        return wait

    stage.api.find = waits_for_others(stage.api.find, lambda kind: kind == "Deployment")
    stage.api.apply = waits_for_others(stage.api.apply, lambda wanted: wanted["kind"] == "Deployment")
    stage.api.patch = waits_for_others(stage.api.patch, lambda kind: kind == "Deployment")
    assert states(stage.do("start")) == dict.fromkeys(names, "running")
    assert stage.do("scale", *names, workers=2).exit_code == 0


def test_start_without_its_dependencies_applies_the_chosen_server_only(stage: Stage) -> None:
    stage.write(WEB, API)
    stage.do("start", "web", deps=False)
    assert stage.applied() == ["apply Deployment shop-web"]


@pytest.mark.parametrize("targets", [(), ("web",)])
def test_disabled_server_is_not_started_and_an_error_only_if_it_was_named(
    stage: Stage, targets: tuple[str, ...]
) -> None:
    stage.write(app("web", disabled=True), API)
    result = stage.do("start", *targets)
    assert "apply Deployment shop-web" not in stage.applied()
    fix = "take `disabled` out of the file, then poolctl start web"
    assert errors(result) == ([("web", "is disabled", fix)] if targets else [])
    assert result.exit_code == (1 if targets else 0)


def test_failure_of_a_server_is_the_failure_of_those_that_need_it(stage: Stage) -> None:
    stage.write(WEB, API, app("other", 8002))
    stage.api.failing["api"] = CRASHED
    result = stage.do("start")
    why = NO_DATABASE
    assert sorted(errors(result)) == [
        ("api", why, "poolctl logs api"),
        ("web", f"waits for api: {why}", "poolctl logs api"),
    ]
    assert (result.exit_code, states(result)["other"]) == (1, "running")


def test_server_with_pods_is_not_applied_when_what_it_needs_has_failed(stage: Stage) -> None:
    stage.write(WEB, API)
    stage.do("start")
    stage.api.failing["api"] = CRASHED
    result = stage.do("restart")
    assert stage.applied() == ["apply Deployment shop-api"]
    assert [each.name for each in result.errors] == ["api", "web"]


def test_problem_that_may_pass_is_a_failure_only_after_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.write(API)
    stage.api.failing["api"] = {"unschedulable": "0/3 nodes are\n available"}
    late = stage.do("start", timeout=0.5)
    hint = "give the cluster room, or ask for less with [kubernetes] requests"
    assert errors(late) == [("api", "is still in backoff: no node can run it: 0/3 nodes are available", hint)]
    assert late.exit_code == 124
    monkeypatch.setattr(platform, "_PASSING_SECONDS", 0.05)
    failed = stage.do("start")
    assert errors(failed) == [("api", "no node can run it: 0/3 nodes are available", hint)]
    assert failed.exit_code == 1


def test_server_that_is_not_ready_within_its_start_timeout_has_failed(stage: Stage) -> None:
    stage.write(app("api", start_timeout="50ms"))
    stage.api.failing["api"] = {"ready": False}
    began = time.monotonic()
    result = stage.do("start")
    message = "was not ready within its start_timeout of 0.05 s"
    assert errors(result) == [("api", message, "poolctl logs api")]
    assert time.monotonic() - began >= 0.05
    steps = [each["progress"] for each in stage.progress]
    assert [(each["state"], each["done"]) for each in steps] == [("starting", False), ("starting", True)]


def test_start_without_waiting_reports_no_server_as_late(stage: Stage) -> None:
    stage.write(WEB, API)
    stage.api.failing["api"] = {"ready": False}
    result = stage.do("start", wait=False)
    assert stage.applied() == ["apply Deployment shop-api", "apply Deployment shop-web"]
    assert (errors(result), result.exit_code) == ([], 0)


def test_object_of_another_owner_is_not_taken_over(stage: Stage) -> None:
    stage.write(API)
    stage.api.add({"kind": "Service", "metadata": {"name": "api", "labels": None}})
    with pytest.raises(
        ControlError, match="Service api in namespace default belongs to something else"
    ) as caught:
        stage.do("start")
    assert (caught.value.exit_code, stage.api.done) == (8, [])
    stage.api.objects.clear()
    labels = {f"{FIELDS}/pool": "shop", f"{FIELDS}/server": "api"}
    stage.api.add({"kind": "Service", "metadata": {"name": "api", "labels": labels}})
    assert stage.do("start").exit_code == 0


@pytest.mark.parametrize(
    ("message", "is_own"),
    [
        ('Apply failed with 1 conflict: conflict with "poolctl" using apps/v1: .spec.replicas', True),
        ('2 conflicts: conflict with "poolctl" using v1: .a conflict with "kubectl" using v1: .b', False),
        ("the object has been modified", False),
    ],
)
def test_only_fields_that_poolctl_has_set_are_taken_over(stage: Stage, message: str, is_own: bool) -> None:
    stage.write(API)
    stage.api.errors["apply Deployment"] = ControlError(message, exit_code=8)
    if is_own:
        stage.do("start")
        assert stage.applied() == ["apply Deployment shop-api by force"]
    else:
        with pytest.raises(ControlError, match=r"conflict|modified"):
            stage.do("start")
        stage.do("start", force=True)
        assert stage.applied() == ["apply Deployment shop-api by force"]


def test_error_other_than_a_conflict_is_not_answered_by_force(stage: Stage) -> None:
    stage.write(API)
    stage.api.errors["apply Deployment"] = ControlError('conflict with "poolctl"', exit_code=7)
    with pytest.raises(ControlError):
        stage.do("start")


def test_restart_gives_the_pods_a_new_revision_and_start_does_not(stage: Stage) -> None:
    def revision() -> str:
        labels: Table = stage.api.objects["Deployment", "shop-api"]["spec"]["template"]["metadata"]["labels"]
        return str(labels[f"{FIELDS}/revision"])

    stage.write(API)
    stage.do("start")
    first = revision()
    stage.do("start")
    assert revision() == first
    stage.do("restart")
    second = revision()
    assert second != first
    stage.do("start")
    assert revision() == second, "the time of the last restart stays"


def test_job_runs_again_by_restart_and_not_by_start(stage: Stage) -> None:
    stage.write(server("migrate", job=True, command=["true"]))
    stage.do("start")
    (job,) = stage.api.names("Job")
    assert stage.applied("Job") == [f"apply Job {job}"]
    assert states(stage.do("start")) == {"migrate": "completed"}
    assert stage.applied("Job") == []
    stage.do("restart")
    assert stage.applied("Job") == [f"delete Job {job}", f"apply Job {job}"]
    assert states(stage.do("stop")) == {"migrate": "stopped"}
    assert stage.api.names("Job") == []


HOURLY = server("report", job=True, every="0 * * * *", command=["true"])


def run_of(name: str, labels: Table) -> Table:
    """A Job of a schedule that is in progress."""
    spec = {"template": {"spec": {}}}
    return {"kind": "Job", "metadata": {"name": name, "labels": labels}, "spec": spec, "status": {}}


@pytest.mark.parametrize("name", ["REPORT", "job:report"])
def test_restart_runs_a_scheduled_job_only_if_it_is_named(stage: Stage, name: str) -> None:
    stage.write(HOURLY, API)
    stage.do("start")
    result = stage.do("restart")
    assert (result.unchanged, stage.api.names("Job")) == (("report",), [])
    result = stage.do("restart", name)
    assert (result.unchanged, result.errors, result.items[0].last_run["result"]) == (None, (), "succeeded")
    (job,) = stage.api.names("Job")
    found = stage.api.objects["Job", job]
    assert found["metadata"]["annotations"] == {"cronjob.kubernetes.io/instantiate": "manual"}
    owner = found["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("CronJob", "shop-report", True)


DEBUG = app("debug", 8003, on_demand=True)


def test_server_on_demand_is_started_by_its_name_or_for_another_one(stage: Stage) -> None:
    stage.write(WEB, app("api", 8001, on_demand=True), DEBUG)
    for verb in ("start", "restart"):
        result = stage.do(verb)
        assert states(result) == {"web": "running", "api": "running", "debug": "stopped"}
        assert not result.errors
    assert "shop-debug" not in stage.api.names("Deployment")
    status = stage.do("status")
    assert (status.exit_code, to_json(status)["summary"]["should_run"]) == (0, 2)
    assert stage.do("wait").exit_code == 0
    for verb in ("start", "restart"):
        stage.do(verb, "d*")
        assert "shop-debug" not in stage.api.names("Deployment")
    assert states(stage.do("start", "DEBUG")) == {"debug": "running"}
    stage.do("scale", "debug", workers=2)
    assert states(stage.do("start"))["debug"] == "running"
    assert stage.api.objects["Deployment", "shop-debug"]["spec"]["replicas"] == 2
    stage.do("stop", "debug")
    assert states(stage.do("start"))["debug"] == "stopped"
    assert states(stage.do("restart", "debug")) == {"debug": "running"}
    assert stage.api.objects["Deployment", "shop-debug"]["spec"]["replicas"] == 1


def test_server_on_demand_that_was_applied_from_the_export_rests_until_it_is_named(stage: Stage) -> None:
    job = server("migrate", job=True, on_demand=True, command=["true"])
    nightly = HOURLY.replace("job = true", "job = true\non_demand = true")
    stage.write(DEBUG, job, nightly)
    for objects in compile_pool(load([str(stage.path)]), [str(stage.path)]).objects.values():
        for each in objects:
            asyncio.run(stage.api.apply(each, force=False))
    rest = {"debug": "stopped", "migrate": "stopped", "report": "stopped"}
    assert states(stage.do("start")) == rest
    assert (stage.do("status").exit_code, stage.api.names("Pod")) == (0, [])
    started = stage.do("start", "debug", "migrate", "report")
    assert states(started) == {"debug": "running", "migrate": "completed", "report": "sleeping"}
    (name,) = stage.api.names("Job")
    stage.do("start")
    stage.do("restart")
    assert stage.applied("Job") == [], "a job that has ended runs again by its name alone"
    stage.do("restart", "migrate")
    assert stage.applied("Job") == [f"delete Job {name}", f"apply Job {name}"]


def test_reload_leaves_servers_on_demand_at_rest_unless_others_need_them(stage: Stage) -> None:
    stage.write(API)
    stage.do("start")
    stage.write(WEB, API, DEBUG)
    assert changes(stage.do("reload")) == [("web", "add", "is new")]
    stage.write(app("web", depends_on=["api", "debug"]), API, DEBUG)
    assert states(stage.do("reload"))["debug"] == "running"
    stage.do("stop", "debug")
    stage.write(WEB, API, app("debug", 8003, on_demand=True, factory=True))
    assert states(stage.do("reload")) == {"web": "stopped", "api": "running", "debug": "stopped"}
    stage.write(API, app("new", 8004))
    stage.do("reload")
    stage.write(app("api", 8001, on_demand=True), app("new", 8004))
    assert states(stage.do("reload")) == {"api": "running", "new": "running"}
    stage.write(app("api", 8001, on_demand=True), app("new", 8004), DEBUG)
    stage.do("reload")
    stage.write(app("api", 8001, on_demand=True), app("new", 8004), app("debug", 8003))
    assert states(stage.do("reload"))["debug"] == "running"


@pytest.mark.parametrize("table", [HOURLY, HOURLY.replace("every", "# every")])
def test_job_that_fails_is_a_failure_of_its_restart(stage: Stage, table: str) -> None:
    stage.write(table)
    stage.do("start")
    stage.api.failing["report"] = CRASHED
    result = stage.do("restart", "report")
    ((name, message, _),) = errors(result)
    assert (name, message, result.exit_code) == ("report", "it has failed", 1)


def test_scheduled_job_that_runs_is_not_run_twice(stage: Stage) -> None:
    stage.write(HOURLY)
    stage.do("start")
    labels = stage.api.objects["CronJob", "shop-report"]["metadata"]["labels"]
    stage.api.add(run_of("now", labels))
    result = stage.do("restart", "report")
    hint = "wait until it has ended, or end it: poolctl stop report"
    assert errors(result) == [("report", "runs, and does not run twice at once", hint)]
    assert stage.applied() == []
    assert stage.do("restart").errors == (), "it was not named"


def test_stop_ends_dependents_first_and_names_them(stage: Stage) -> None:
    stage.write(WEB, API, app("other", 8002))
    stage.do("start", "web")
    result = stage.do("stop", "api", "other")
    assert stage.applied() == ["patch Deployment shop-web", "patch Deployment shop-api"]
    assert stage.warnings == ["stopping web as well, which depends on api"]
    assert (result.dependents, result.unchanged, states(result)) == (
        ("web",), ("other",), {"api": "stopped", "other": "stopped"},
    )  # fmt: skip
    again = stage.do("stop", "api")
    assert (stage.api.done, again.unchanged, again.dependents) == ([], ("api",), None)


def test_stop_returns_when_the_last_worker_has_ended(stage: Stage) -> None:
    stage.write(API)
    stage.do("start")
    stage.api.keeps_pods = True
    late = stage.do("stop", timeout=0.3)
    assert (errors(late), late.exit_code) == ([("api", "is still stopping", "poolctl logs api")], 124)
    stage.do("start")
    stage.on_progress = lambda line: stage.api._remove_pods("shop-api")
    assert (states(stage.do("stop")), stage.api.names("Pod")) == ({"api": "stopped"}, [])


def test_stop_without_dependents_leaves_them(stage: Stage) -> None:
    stage.write(WEB, API)
    stage.do("start")
    result = stage.do("stop", "api", deps=False)
    assert (stage.applied(), result.dependents) == (["patch Deployment shop-api"], None)


def test_stopped_server_keeps_its_workers_for_the_next_start(stage: Stage) -> None:
    stage.write(app("api", workers=2))
    stage.do("start")
    stage.do("scale", workers=4)
    stage.do("stop")
    assert stage.api.names("Pod") == []
    stage.do("start")
    assert len(stage.api.names("Pod")) == 2
    assert f"{FIELDS}/stopped" not in stage.api.objects["Deployment", "shop-api"]["metadata"]["annotations"]


def test_stop_suspends_a_schedule_and_ends_its_run(stage: Stage) -> None:
    stage.write(HOURLY)
    stage.do("start")
    labels = stage.api.objects["CronJob", "shop-report"]["metadata"]["labels"]
    stage.api.add(run_of("now", labels))
    stage.do("stop", wait=False)
    assert stage.applied() == ["patch CronJob shop-report", "delete Job now"]
    assert stage.api.objects["CronJob", "shop-report"]["spec"]["suspend"] is True
    stage.do("start")
    assert stage.api.objects["CronJob", "shop-report"]["spec"]["suspend"] is False


@pytest.mark.parametrize("workers", [None, 0, -1, True, "3", 1.5])
def test_number_of_workers_is_a_whole_number_from_1(stage: Stage, workers: Any) -> None:
    stage.write(API)
    with pytest.raises(SelectorError) as caught:
        stage.do("scale", workers=workers)
    assert (caught.value.message, caught.value.hint) == (
        f"workers is {workers!r}, not a number of them",
        "a whole number from 1",
    )


@needs("scaling")
def test_only_servers_that_run_and_have_no_triggers_are_scaled_by_hand(stage: Stage) -> None:
    triggers = {"max": 3, "triggers": {"cpu": 0.5}}
    job = server("migrate", job=True, command=["true"])
    stage.write(app("web"), app("auto", 8001, scale=triggers), job, app("idle", 8002))
    stage.do("start", "web", "auto", "migrate")
    result = stage.do("scale", workers=3)
    assert stage.applied() == ["patch Deployment shop-web"]
    assert errors(result) == [
        ("auto", "is scaled by its triggers: change scale.min and scale.max in the file", ""),
        ("migrate", "is a job", ""),
        ("idle", "is not running", "poolctl start idle"),
    ]
    assert len([each for each in stage.api.names("Pod") if "-web-" in each]) == 3
    stage.do("start", "web")
    assert stage.api.objects["Deployment", "shop-web"]["spec"]["replicas"] == 3, "until the file changes"


def test_added_workers_that_fail_are_a_failure_of_scale(stage: Stage) -> None:
    stage.write(API)
    stage.do("start")
    stage.api.failing["api"] = CRASHED
    result = stage.do("scale", workers=2)
    assert (errors(result), result.exit_code) == ([("api", NO_DATABASE, "poolctl logs api")], 1)


def changes(result: Any) -> list[tuple[str, str, str]]:
    return [(each.name, each.change, each.message) for each in result.changes]


def test_dry_run_of_a_reload_has_every_change_and_makes_none(stage: Stage) -> None:
    stage.write(app("web"), app("api", 8001), app("gone", 8002))
    stage.do("start")
    assert changes(stage.do("reload", dry_run=True)) == []
    stage.write(
        app("web", env={"A": "b"}),
        app("api", 8001, workers=2),
        app("new", 8003),
        app("off", 8004, disabled=True),
    )
    result = stage.do("reload", dry_run=True)
    assert changes(result) == [
        ("gone", "remove", "is not in the file any more"),
        ("web", "restart", "has changed: its workers are replaced"),
        ("api", "update", "has changed: its workers stay"),
        ("new", "add", "is new"),
    ]
    assert (result.exit_code, stage.api.done) == (3, [])


def test_reload_applies_the_changes_and_deletes_what_is_no_longer_needed(stage: Stage) -> None:
    stage.write(app("web", env={"A": "1"}), app("api", 8001), app("gone", 8002))
    stage.do("start")
    before, secrets = set(stage.api.names("ConfigMap")), stage.api.names("Secret")
    stage.write(app("web", factory=True, env={"A": "2"}), server("api", command=["work"]))
    result = stage.do("reload")
    assert sorted(stage.applied("Deployment")) == [
        "apply Deployment shop-api", "apply Deployment shop-web", "delete Deployment shop-gone",
    ]  # fmt: skip
    assert (result.exit_code, states(result)) == (0, {"web": "running", "api": "running"})
    assert stage.api.names("Service") == ["web"]
    assert before.isdisjoint(stage.api.names("ConfigMap"))
    assert len(stage.api.names("ConfigMap")) == 2
    (secret,) = stage.api.names("Secret")
    assert (len(secrets), secret in secrets) == (1, False)
    assert changes(stage.do("reload")) == []
    assert stage.api.names("Secret") == [secret]


def test_reload_leaves_stopped_servers_stopped(stage: Stage) -> None:
    stage.write(API)
    stage.do("start")
    stage.do("stop")
    stage.write(app("api", 8001, factory=True))
    stage.do("reload")
    assert stage.applied() == ["apply Deployment shop-api"]
    assert (stage.api.names("Pod"), states(stage.do("listing"))) == ([], {"api": "stopped"})


def test_reload_deletes_the_last_schedule_of_a_pool(stage: Stage) -> None:
    stage.write(HOURLY, API)
    stage.do("start")
    stage.write(API)
    assert changes(stage.do("reload")) == [("report", "remove", "is not in the file any more")]
    assert (stage.api.names("CronJob"), stage.api.names("Deployment")) == ([], ["shop-api"])


def test_changed_job_runs_again_by_reload(stage: Stage) -> None:
    stage.write(server("migrate", job=True, command=["true"]))
    stage.do("start")
    stage.write(server("migrate", job=True, command=["true", "again"]))
    found = changes(stage.do("reload"))
    assert found == [("migrate", "restart", "has changed: the job runs again")]
    assert len(stage.api.names("Job")) == 2


@pytest.mark.parametrize("kind", ["CronJob", "HTTPRoute", "Ingress"])
@pytest.mark.parametrize(
    "error", [NotFound("no such kind", exit_code=1), ControlError("forbidden", exit_code=7)]
)
def test_kind_that_the_cluster_lacks_or_forbids_is_no_error_unless_the_pool_needs_it(
    stage: Stage, kind: str, error: ControlError
) -> None:
    stage.write(API)
    stage.api.errors[f"list {kind}"] = error
    assert stage.do("reload").exit_code == 0
    stage.api.errors[f"list {kind}"] = ControlError("does not answer", exit_code=6)
    with pytest.raises(ControlError, match="does not answer"):
        stage.do("reload")


def test_status_counts_the_servers_and_names_those_that_should_run(stage: Stage) -> None:
    stage.write(WEB, API, app("off", 8004, disabled=True))
    stage.do("start")
    status: Any = stage.do("status")
    assert (status.errors, status.exit_code) == ((), 0)
    expected = {
        "name": "shop",
        "context": "minikube",
        "namespace": "default",
        "servers": 3,
        "should_run": 2,
        "ready": 2,
    }
    assert {key: status.summary[key] for key in expected} == expected
    assert status.summary["states"] == {"running": 2, "disabled": 1}
    stage.api.failing["api"] = CRASHED
    stage.do("restart", "api")
    stage.do("stop", "web")
    status = stage.do("status")
    assert errors(status) == [("api", NO_DATABASE, "poolctl logs api")]
    assert (status.exit_code, status.summary["should_run"]) == (3, 1), "web was stopped"


def test_server_that_should_run_and_does_not_is_named_in_the_status(stage: Stage) -> None:
    stage.write(API)
    assert errors(stage.do("status")) == [("api", "is stopped, not ready", "")]


def test_selection_of_an_unknown_server_is_an_answer(stage: Stage) -> None:
    stage.write(API)
    for verb in ("listing", "status", "show", "wait", "start", "restart", "stop", "logs", "stacks"):
        result = stage.do(verb, "nobody")
        assert (result.exit_code, stage.api.done) == (NOTHING_MATCHED, [])
        assert "nobody" in result.errors[0].message


def test_show_has_the_address_on_the_cluster_and_the_last_output(stage: Stage) -> None:
    stage.write(app("api", 8001, workers=2), server("work", command=["work"]))
    stage.api.failing["api"] = CRASHED
    stage.do("start")
    api, work = stage.do("show").items
    assert (api.endpoints, work.endpoints) == (("api:8001",), ())
    assert (api.complaint, api.failure.message.partition(" (")[0]) == (
        "no database",
        "exited with status 3: no database",
    )
    assert (work.complaint, work.failure) == ("", None)
    assert [(each.id, each.health) for each in api.worker_list] == [
        ("shop-api-0", "ko"),
        ("shop-api-1", "ko"),
    ]
    assert api.worker_list[0].where == "node node-1, no address yet"
    assert (api.overrides.workers, api.generation) == (None, 1)
    stage.do("scale", "work", workers=3)
    assert stage.do("show", "work").items[0].overrides.workers == 3


@pytest.mark.parametrize(
    ("goal", "fails", "late"),
    [
        ("ready", False, []),
        ("healthy", False, []),
        ("running", False, [("off", "is disabled, not running", "poolctl logs off")]),
        ("disabled", False, [("api", "is running, not disabled", "poolctl logs api")]),
        ("ready", True, [("api", f"is in backoff, not ready: {NO_DATABASE}", "poolctl logs api")]),
    ],
)
def test_wait_ends_when_the_servers_have_reached_the_state(
    stage: Stage, goal: str, fails: bool, late: list[tuple[str, str, str]]
) -> None:
    stage.write(API, app("off", 8004, disabled=True))
    stage.api.failing.update({"api": CRASHED} if fails else {})
    stage.do("start")
    result = stage.do("wait", "api", "off", timeout=0.3 if late else 30, **{"for": goal})
    assert (errors(result), result.exit_code) == (late, 124 if late else 0)


def test_logs_of_all_workers_are_in_the_order_of_time(stage: Stage) -> None:
    stage.write(app("api", workers=2), app("other", 8003))
    stage.do("start")
    stage.api.logs = {
        "shop-api-0": ["2026-01-01T00:00:01.5Z first", "2026-01-01T00:00:03.123456789Z third\n"],
        "shop-api-1": ["2026-01-01T00:00:02Z second word"],
    }
    stage.do("logs", "api", lines=7, since="2026-01-01T00:00:00Z")
    found = [(each["name"], each["line"]) for each in stage.progress]
    assert found == [("api", "first"), ("api", "second word"), ("api", "third")]
    assert stage.progress[2]["time"].startswith("2026-01-01T00:00:03.123")
    first, second = stage.api.done
    assert first.startswith("log shop-api-0 7 ")
    assert int(first.split()[-1]) > 1
    assert second.startswith("log shop-api-1 7 ")
    stage.do("logs", "api")
    assert stage.api.done == ["log shop-api-0 None None", "log shop-api-1 None None"]


def test_follow_has_the_lines_of_later_workers_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "_LISTED_AGAIN_SECONDS", 0.001)
    stage.write(API, app("other", 8003))
    stage.do("start")
    labels = stage.api.objects["Pod", "shop-api-0"]["metadata"]["labels"]
    stage.api.logs = {
        "shop-api-0": ["2026-01-01T00:00:02Z first"],
        "shop-api-1": ["2026-01-01T00:00:01Z second"],
        "shop-other-0": ["2026-01-01T00:00:01Z of another server"],
    }

    def next_line(line: Table) -> None:
        if line["line"] == "first":
            stage.api.add(pod("shop-api-1", labels))
        else:
            stage.api.errors["list Pod"] = ControlError("the cluster is away", exit_code=6)

    stage.on_progress = next_line
    with pytest.raises(ControlError, match="the cluster is away"):
        stage.do("logs", "api", lines=7, follow=True)
    assert [each["line"] for each in stage.progress] == ["first", "second"]
    assert stage.api.done == ["log shop-api-0 7 None", "log shop-api-1 None None"]


def test_objects_are_listed_again_when_watches_bring_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "_LISTED_AGAIN_SECONDS", 0.001)
    stage.api.watches = False
    stage.write(API)
    assert states(stage.do("start", timeout=20)) == {"api": "running"}


def test_watch_that_has_ended_begins_again_after_a_new_list(stage: Stage) -> None:
    stage.write(API)
    stage.api.oldest = 2
    assert states(stage.do("start", timeout=2)) == {"api": "running"}


def test_stacks_of_a_named_server_without_workers_are_a_warning(stage: Stage) -> None:
    stage.write(API)
    assert stage.do("stacks", "api").warnings == ("api: has no worker",)
    assert stage.do("stacks").warnings == ()


def test_keys_that_are_ignored_are_warnings_of_what_applies_them(stage: Stage) -> None:
    stage.write(app("api", tags=["a"]))
    assert any("tags" in each for each in stage.do("start").warnings)
    assert stage.do("listing").warnings == ()


ROUTED = POOL + 'gateway = "edge"\n[[route]]\nalias = "site"\nhost = "shop.example"\nto = "web"\n'


def test_route_is_applied_after_its_servers_and_deleted_with_its_table(stage: Stage) -> None:
    stage.write(app("web"), pool=ROUTED)
    stage.api.failing["web"] = CRASHED
    stage.do("start")
    assert stage.applied("HTTPRoute") == []
    del stage.api.failing["web"]
    stage.do("restart")
    assert stage.applied("Deployment", "HTTPRoute") == [
        "apply Deployment shop-web",
        "apply HTTPRoute shop-site",
    ]
    assert (stage.do("start").exit_code, stage.applied("HTTPRoute")) == (0, []), "it has not changed"
    stage.write(app("web"), pool=ROUTED.replace("shop.example", "www.shop.example"))
    assert changes(stage.do("reload", dry_run=True)) == [("route", "update", "site has changed")]
    stage.do("reload")
    assert stage.applied("HTTPRoute") == ["apply HTTPRoute shop-site"]
    stage.write(app("web"))
    assert changes(stage.do("reload")) == [("route", "update", "shop-site is not in the file any more")]
    assert stage.applied("HTTPRoute") == ["delete HTTPRoute shop-site"]


def test_route_of_another_owner_is_not_taken_over(stage: Stage) -> None:
    stage.write(app("web"), pool=ROUTED)
    stage.api.add({"kind": "HTTPRoute", "metadata": {"name": "shop-site", "labels": {}}})
    with pytest.raises(ControlError, match="HTTPRoute shop-site in namespace default belongs") as caught:
        stage.do("start")
    assert caught.value.exit_code == 8


def test_cluster_without_the_kind_of_the_routes_is_an_error_with_the_fix(stage: Stage) -> None:
    stage.write(app("web"), pool=ROUTED)
    stage.api.errors["apply HTTPRoute"] = NotFound("the server could not find it", exit_code=1)
    with pytest.raises(ControlError, match="the route site cannot be applied: the server could") as caught:
        stage.do("start")
    assert caught.value.hint.startswith("install the Gateway API on the cluster")


def test_client_answers_wrong_requests_before_it_reaches_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    client = KubernetesPlatform([str(path)], {})
    assert repr(client) == f"<KubernetesPlatform {path}>"
    found = client.call("list", {"selector": {"state": ["nowhere"]}})
    assert (found["exit_code"], len(found["errors"])) == (2, 1)
    path.write_text("[[server]]\nname = 3\n")
    with pytest.raises(Failure) as caught:
        client.call("list")
    assert caught.value.outcome.exit_code == 5


@pytest.fixture
def client(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubernetesPlatform:
    """A client that reaches the stand-in."""
    monkeypatch.setattr(platform, "Cluster", lambda context, namespace, environment: stage.api)
    stage.write(WEB, API)
    return KubernetesPlatform([str(stage.path)], {STATE_VARIABLE: str(tmp_path / "state")})


def test_client_answers_with_documents_and_chooses_by_expressions(
    client: KubernetesPlatform, stage: Stage
) -> None:
    lines: list[Table] = []
    started = client.call("start", None, lines.append, 30.0)
    assert [(each["name"], each["state"]) for each in started["items"]] == [
        ("web", "running"),
        ("api", "running"),
    ]
    assert {each["progress"]["name"] for each in lines} == {"web", "api"}
    found = client.call("list", {"selector": {"name": ["^w"]}})
    assert [each["name"] for each in found["items"]] == ["web"]
    assert client.call("status")["summary"]["ready"] == 2
    assert client.call("show", {"selector": {"targets": ["nobody"]}})["exit_code"] == NOTHING_MATCHED
    assert client.call("stats")["items"] == client.call("list")["items"]
    scaled = client.call("scale", {"selector": {"targets": ["api"]}, "options": {"workers": 2}})
    assert [len(each["worker_list"]) for each in scaled["items"]] == [2]
    assert client.call("reload", {"options": {"dry_run": True}})["changes"] == []


def test_stop_of_everything_asks_where_the_pool_was_started_elsewhere(
    client: KubernetesPlatform, stage: Stage
) -> None:
    everything, confirmed = {"options": {"wait": False}}, {"options": {"wait": False, "yes": True}}
    client.call("stop", everything)  # it was never started from here
    client.call("start")
    client.call("stop", everything)
    for name, here in (("context", "production"), ("namespace", "blue")):
        setattr(stage.api, name, here)
        with pytest.raises(ControlError) as caught:
            client.call("stop", everything)
    assert caught.value.message == (
        "this would stop the pool on context production, namespace blue; "
        "it was started on context minikube, namespace default"
    )
    assert (caught.value.exit_code, caught.value.hint) == (2, "poolctl stop --yes stops it here")
    client.call("stop", {"selector": {"targets": ["api"]}, **everything})
    client.call("stop", confirmed)
    client.call("start")
    client.call("stop", everything)


def test_command_without_an_equal_on_a_cluster_is_refused_with_what_to_use() -> None:
    client = KubernetesPlatform(["pool.toml"], {})
    client.check_supported("start")
    with pytest.raises(ControlError, match="events is for a pool on this machine") as caught:
        client.check_supported("events")
    assert (caught.value.exit_code, caught.value.hint) == (
        2,
        "kubectl events shows what the cluster has done",
    )
    assert not_on_a_cluster("export").hint.startswith("docs/kubernetes.md lists")
