"""What objects of the cluster say about servers: tables as an API server sends them, and the verdicts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from poolctl.config import ServerConfig
from poolctl.features.kubernetes._state import Pod, ScheduledWorkload, Workload, workloads

Table = dict[str, Any]
NOW = 1_700_000_100.0
READY_SINCE = "2023-11-14T22:14:20Z"  # 40 s before
WEB = ServerConfig(name="web", bind="127.0.0.1:8000", app="shop:web", workers=2)
MIGRATE = ServerConfig(name="migrate", job=True, command=["true"])


def pod(name: str = "web-1", *, revision: str = "new", ready: bool = True, **changes: Any) -> Table:
    """A running pod; `changes` replace parts of its status, or of its container's."""
    container = {"name": "server", "ready": ready, "restartCount": 0, "state": {"running": {}}}
    container |= changes.pop("container", {})
    status = {
        "phase": "Running",
        "podIP": "10.0.0.5",
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": READY_SINCE}],
        "containerStatuses": [container],
        **changes,
    }
    labels = {"poolctl.dev/pool": "shop", "poolctl.dev/server": "web", "poolctl.dev/revision": revision}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"nodeName": "node-1"}, "status": status}


def waiting(reason: str, message: str = "", **more: Any) -> Table:
    return {"ready": False, "state": {"waiting": {"reason": reason, "message": message}}, **more}


def ended(code: int, message: str = "", reason: str = "Error") -> Table:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def deployment(replicas: int = 2, *, seen: int = 3, annotations: Table | None = None, **status: Any) -> Table:
    """A Deployment of generation 3 whose pods are complete unless `status` says otherwise."""
    full = {"replicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas}
    return {
        "metadata": {
            "name": "shop-web",
            "generation": 3,
            "labels": {"poolctl.dev/server": "web"},
            "annotations": {"poolctl.dev/workers": "2", **(annotations or {})},
        },
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"poolctl.dev/revision": "new"}}}},
        "status": {"observedGeneration": seen, **full, **status},
    }


def job(**status: Any) -> Table:
    template = {"metadata": {"labels": {"poolctl.dev/revision": "new"}}}
    labels = {"poolctl.dev/server": "migrate"}
    return {
        "metadata": {"name": "migrate-1", "labels": labels},
        "spec": {"template": template},
        "status": status,
    }


def web(found: Table | None, *pods: Table) -> Workload:
    return Workload(WEB, found, [Pod(each) for each in pods])


def test_server_without_objects_is_stopped() -> None:
    item = web(None).item(NOW)
    assert (item.state, item.ready, item.health, item.workers, item.worker_list) == (
        "stopped",
        False,
        "unknown",
        2,
        (),
    )


def test_running_server_has_its_workers_and_no_pids() -> None:
    item = web(deployment(), pod("web-1"), pod("web-2", container={"restartCount": 3})).item(NOW)
    assert (item.state, item.ready, item.health, item.pids) == ("running", True, "ok", ())
    assert (item.uptime_seconds, item.restarts) == (40.0, 3)
    first, second = item.worker_list
    assert (first.id, first.node, first.address, first.phase, first.ready) == (
        "web-1", "node-1", "10.0.0.5", "running", True,
    )  # fmt: skip
    assert second.restarts == 3


def test_server_with_fewer_ready_workers_than_asked_for_is_ready_with_a_warning() -> None:
    item = web(deployment(), pod(), pod("web-2", ready=False)).item(NOW)
    assert (item.state, item.ready, item.health) == ("running", True, "warn")


@pytest.mark.parametrize(
    ("found", "complete"),
    [
        (deployment(), True),
        (deployment(seen=2), False),  # the controller has not seen the newest generation
        (deployment(availableReplicas=1), False),
        (deployment(updatedReplicas=1), False),
    ],
)
def test_server_is_complete_when_every_worker_of_the_newest_generation_is_available(
    found: Table, complete: bool
) -> None:
    assert web(found, pod(), pod("web-2")).has_reached_goal is complete


def test_server_with_workers_of_an_earlier_revision_is_not_complete() -> None:
    found = deployment()
    found["status"]["replicas"] = 3
    assert not web(found, pod(), pod("web-2"), pod("web-0", revision="old")).has_reached_goal


def test_pod_on_a_lost_node_is_unknown_and_not_counted() -> None:
    lost = pod("web-2")
    lost["status"]["conditions"][0]["status"] = (
        "False"  # by the node controller; the kubelet said ready before
    )
    workload = web(deployment(), pod(), lost)
    assert not workload.has_reached_goal
    item = workload.item(NOW)
    assert [(each.phase, each.ready) for each in item.worker_list] == [("running", True), ("unknown", False)]
    assert item.health == "warn"


def test_stopped_server_is_stopping_until_its_pods_are_gone() -> None:
    found = deployment(0, annotations={"poolctl.dev/stopped": "true"})
    leaving = pod()
    leaving["metadata"]["deletionTimestamp"] = READY_SINCE
    assert web(found, leaving).item(NOW).state == "stopping"
    assert web(found, leaving).item(NOW).worker_list[0].phase == "stopping"
    assert web(found).item(NOW).state == "stopped"


@pytest.mark.parametrize(
    ("container", "message"),
    [
        (waiting("ErrImagePull", "not\nfound"), "ErrImagePull: not found (pod web-1 on node-1)"),
        (waiting("InvalidImageName"), "InvalidImageName (pod web-1 on node-1)"),
        (
            waiting("CrashLoopBackOff", lastState=ended(3, "Traceback …\n  no module named shop\n")),
            "exited with status 3: no module named shop (pod web-1 on node-1)",
        ),
        (waiting("CrashLoopBackOff", lastState=ended(0)), "exited with status 0 (pod web-1 on node-1)"),
        (
            {"ready": False, "state": ended(137, reason="OOMKilled")},
            "OOMKilled, status 137 (pod web-1 on node-1)",
        ),
    ],
)
def test_worker_that_cannot_run_is_a_failure_with_its_reason_and_place(
    container: Table, message: str
) -> None:
    workload = web(deployment(availableReplicas=0), pod(ready=False, container=container))
    found = workload.failure()
    assert found is not None
    assert (found.message, found.may_pass) == (message, False)
    item = workload.item(NOW)
    assert (item.state, item.ready, item.health) == ("backoff", False, "ko")


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"container": waiting("ImagePullBackOff")}, "ImagePullBackOff", "kubectl describe pod"),
        ({"container": waiting("CreateContainerError", "no entry")}, "CreateContainerError: no entry", ""),
        ({"container": {"ready": False, "state": ended(3)}}, "exited with status 3", "poolctl logs web"),
        ({"initContainerStatuses": [waiting("ErrImagePull")]}, "ErrImagePull", "kubectl describe pod"),
    ],
)
def test_failure_of_a_worker_has_its_fix_and_no_place_before_it_has_one(
    changes: Table, message: str, hint: str
) -> None:
    found = pod(ready=False, **changes)
    del found["spec"]["nodeName"]
    problem = Pod(found).problem()
    assert problem is not None
    assert problem.message == f"{message} (pod web-1)"
    assert problem.hint.startswith(hint)
    assert bool(problem.hint) is bool(hint)


@pytest.mark.parametrize(
    "changes",
    [
        {"container": {"ready": False, "state": ended(0, reason="Completed")}},
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]},
        {"conditions": [{"type": "PodScheduled", "status": "True", "reason": "Unschedulable"}]},
    ],
)
def test_worker_that_has_ended_well_or_waits_as_asked_is_no_failure(changes: Table) -> None:
    assert Pod(pod(ready=False, **changes)).problem() is None


def test_worker_that_is_ready_or_leaves_is_no_failure_whatever_it_was_before() -> None:
    crashed: Table = {"container": {"lastState": ended(3)}}
    assert Pod(pod(**crashed)).problem() is None
    leaving = pod(ready=False, container=waiting("CrashLoopBackOff", lastState=ended(3)))
    assert Pod(leaving).problem() is not None
    leaving["metadata"]["deletionTimestamp"] = READY_SINCE
    assert Pod(leaving).problem() is None
    assert not Pod(leaving).is_ready


@pytest.mark.parametrize(
    ("state", "begun"),
    [
        ({"state": {"running": {}}}, True),
        ({"state": ended(1)}, True),
        (waiting("CrashLoopBackOff", lastState=ended(1)), True),
        (waiting("ContainerCreating"), False),
    ],
)
def test_worker_may_have_written_output_once_its_container_has_run(state: Table, begun: bool) -> None:
    assert Pod(pod(ready=False, container=state)).has_begun is begun


def test_usual_start_is_no_failure() -> None:
    creating = pod(ready=False, container=waiting("ContainerCreating"))
    workload = web(deployment(availableReplicas=0), creating)
    assert workload.failure() is None
    assert workload.item(NOW).state == "starting"


def test_stopped_server_is_complete_once_its_pods_are_gone() -> None:
    found = deployment(0)
    assert web(found).has_reached_goal
    assert not web(found, pod()).has_reached_goal


def test_server_is_up_since_its_first_ready_worker_and_never_for_less_than_no_time() -> None:
    later = [{"type": "Ready", "status": "True", "lastTransitionTime": "2023-11-14T22:14:40Z"}]
    workload = web(deployment(), pod("web-1", conditions=later), pod("web-2"))
    assert workload.item(NOW).uptime_seconds == 40.0
    assert workload.item(NOW - 3600).uptime_seconds == 0.0, "the clock of this machine is slow"


def test_server_that_is_disabled_or_stopped_is_not_wanted() -> None:
    disabled = ServerConfig(name="web", bind="127.0.0.1:8000", app="shop:web", disabled=True)
    assert not Workload(disabled, None, []).is_wanted
    assert Workload(disabled, None, []).item(NOW).state == "disabled"
    assert not web(deployment(0, annotations={"poolctl.dev/stopped": "true"})).is_wanted
    assert web(deployment()).is_wanted


def test_stopped_server_waits_for_no_pod_of_a_lost_node() -> None:
    lost = pod()
    lost["status"]["conditions"][0]["status"] = "False"
    assert web(deployment(0), lost).item(NOW).state == "stopped"


def test_deployment_that_says_nothing_of_its_replicas_has_one() -> None:
    found = deployment()
    del found["spec"]["replicas"]
    assert web(found).desired_workers == 1
    assert not web(found).is_stopped


def test_objects_name_is_that_of_its_server_only() -> None:
    assert web(deployment()).is_named("shop-web")
    assert not web(deployment()).is_named("shop-api")
    assert not web(None).is_named("shop-web")


def test_failure_of_an_earlier_revision_does_not_count() -> None:
    stale = pod("web-0", revision="old", ready=False, container=waiting("ErrImagePull"))
    assert web(deployment(), pod(), pod("web-2"), stale).failure() is None


def test_pod_without_a_place_may_get_one() -> None:
    nowhere = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    found = web(
        deployment(availableReplicas=0), pod(ready=False, phase="Pending", conditions=[nowhere])
    ).failure()
    assert found is not None
    assert (found.message, found.may_pass) == ("no node can run it: 0/3 nodes", True)


@pytest.mark.parametrize(
    ("condition", "message", "may_pass"),
    [
        ({"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}, "exceeded quota", True),
        ({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}, "FailedCreate", True),
        ({"type": "Progressing", "status": "False", "message": "too late"}, "too late", False),
    ],
)
def test_conditions_of_a_deployment_are_failures(condition: Table, message: str, may_pass: bool) -> None:
    found = web(deployment(availableReplicas=0, conditions=[condition])).failure()
    assert found is not None
    assert (found.message, found.may_pass) == (message, may_pass)
    assert web(deployment(seen=2, conditions=[condition])).failure() is None  # of an earlier generation
    passed = {**condition, "status": "True" if condition["status"] == "False" else "False"}
    assert web(deployment(conditions=[passed])).failure() is None


def test_number_of_workers_that_others_have_set_is_a_live_one() -> None:
    assert web(deployment()).workers_override is None
    scaled = deployment(5)
    assert web(scaled).workers_override == 5
    stopped = deployment(0, annotations={"poolctl.dev/stopped": "true"})
    assert web(stopped).workers_override is None
    by_triggers = copy.deepcopy(scaled)
    del by_triggers["metadata"]["annotations"]["poolctl.dev/workers"]
    assert web(by_triggers).workers_override is None


@pytest.mark.parametrize(
    ("status", "state", "ready"),
    [
        ({}, "starting", False),
        ({"succeeded": 1}, "completed", True),
        (
            {"failed": 1, "conditions": [{"type": "Failed", "status": "True", "message": "limit"}]},
            "failed",
            False,
        ),
    ],
)
def test_job_is_completed_failed_or_on_its_way(status: Table, state: str, ready: bool) -> None:
    item = Workload(MIGRATE, job(**status), []).item(NOW)
    assert (item.state, item.ready) == (state, ready)


def test_job_runs_without_being_ready_while_its_process_runs() -> None:
    for ready in (True, False):
        item = Workload(MIGRATE, job(), [Pod(pod(ready=ready))]).item(NOW)
        assert (item.state, item.ready, item.health) == ("running", False, "unknown")
    done = Workload(MIGRATE, job(succeeded=1), [Pod(pod(ready=False, phase="Succeeded"))]).item(NOW)
    assert (done.state, done.ready, done.uptime_seconds) == ("completed", True, 0.0)


def test_problem_of_a_worker_explains_a_deployment_that_does_not_progress() -> None:
    condition = {"type": "Progressing", "status": "False", "message": "too late"}
    crashing = pod(ready=False, container={"ready": False, "state": ended(3)})
    found = web(deployment(availableReplicas=0, conditions=[condition]), crashing).failure()
    assert found is not None
    assert found.message == "exited with status 3 (pod web-1 on node-1)"


def test_failed_job_says_what_its_process_said() -> None:
    condition = {"type": "Failed", "status": "True", "message": "limit"}
    process = pod(ready=False, phase="Failed", container={"ready": False, "state": ended(2, "no database")})
    found = Workload(MIGRATE, job(failed=1, conditions=[condition]), [Pod(process)]).failure()
    assert found is not None
    assert found.message == "exited with status 2: no database (pod web-1 on node-1)"


def test_newest_run_of_a_job_counts_and_servers_keep_the_order_of_the_file() -> None:
    old, new = job(succeeded=1), job()
    old["metadata"] |= {"name": "migrate-0", "creationTimestamp": "2023-01-01T00:00:00Z"}
    new["metadata"] |= {"creationTimestamp": "2023-02-01T00:00:00Z"}
    found = workloads([WEB, MIGRATE], [deployment()], [new, old], [pod()])
    assert list(found) == ["web", "migrate"]
    assert found["migrate"].is_named("migrate-1")
    assert [each.name for each in found["web"].pods] == ["web-1"]


@pytest.mark.parametrize("garbage", [None, 3, "x", [], {"conditions": 3}, {"containerStatuses": [3]}])
def test_objects_of_another_shape_are_no_error(garbage: Any) -> None:
    found = deployment()
    found["status"] = garbage
    broken = pod()
    broken["status"] = garbage
    workload = web(found, broken)
    assert (workload.has_reached_goal, workload.failure(), workload.item(NOW).ready) == (False, None, False)


NIGHTLY = ServerConfig(name="nightly", job=True, command=["true"], every="30 3 * * *")


def cron_job(**spec: Any) -> Table:
    return {
        "metadata": {"name": "shop-nightly"},
        "spec": {"suspend": False, "timeZone": "Asia/Tokyo", **spec},
    }


def run(name: str, began: str, kind: str = "", **condition: Any) -> Table:
    """A run's Job, in progress unless it has a condition of this kind."""
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": began, **condition}] if kind else []
    return {"metadata": {"name": name}, "status": {"startTime": began, "conditions": conditions}}


def test_schedule_is_in_its_time_zone_and_the_last_run_that_ended_counts() -> None:
    runs = [
        run("b", "2023-11-13T18:30:00Z", "Failed", message="limit"),
        run("a", "2023-11-12T18:30:00Z", "Complete"),
        run("c", "2023-11-14T18:30:00Z"),
    ]
    item = ScheduledWorkload(NIGHTLY, cron_job(), [], runs).item(NOW)
    assert (item.state, item.ready, item.health) == ("running", True, "warn")
    assert item.next_run_at == "2023-11-15T18:30:00Z"  # 3:30 in Tokyo
    assert item.last_run is not None
    assert (item.last_run["result"], item.last_run["message"]) == ("failed", "limit")
    later = ScheduledWorkload(
        NIGHTLY, cron_job(), [], [*runs[:2], run("c", "2023-11-14T18:30:00Z", "Complete")]
    )
    assert (later.item(NOW).state, later.item(NOW).health) == ("sleeping", "ok")


def test_suspended_schedule_is_stopped_once_its_run_has_ended() -> None:
    suspended = cron_job(suspend=True)
    assert ScheduledWorkload(NIGHTLY, suspended, [], [run("a", READY_SINCE)]).item(NOW).state == "stopping"
    item = ScheduledWorkload(NIGHTLY, suspended, [], []).item(NOW)
    assert (item.state, item.ready, item.health, item.next_run_at) == ("stopped", False, "unknown", None)


def test_last_run_has_its_times_and_its_status_and_says_what_its_process_said() -> None:
    process = pod(ready=False, phase="Failed", container={"ready": False, "state": ended(2, "no database")})
    process["metadata"]["labels"]["job-name"] = "b"
    other = copy.deepcopy(process)
    other["metadata"]["labels"]["job-name"] = "a"
    other["status"]["containerStatuses"][0]["state"] = ended(9)
    runs = [
        run("b", "2023-11-13T18:30:00Z", "Failed", lastTransitionTime="2023-11-13T18:31:00Z"),
        {"metadata": {"name": "a"}, "status": {"startTime": "2023-11-12T18:30:00Z", "succeeded": 1}},
        {"metadata": {"name": "c", "creationTimestamp": READY_SINCE}},
    ]
    workload = ScheduledWorkload(NIGHTLY, cron_job(), [Pod(other), Pod(process)], runs)
    item = workload.item(NOW)
    assert item.last_run == {
        "result": "failed", "started_at": "2023-11-13T18:30:00Z", "ended_at": "2023-11-13T18:31:00Z", "status": 2,
        "signal": None, "message": "exited with status 2: no database",
    }  # fmt: skip
    assert item.worker_list == ()
    failure = workload.failure()
    assert failure is not None
    assert failure.message == (
        "its last run failed (2023-11-13T18:30:00Z): exited with status 2: no database"
    )
    assert failure.hint == "poolctl logs nightly"
    assert [each and each.began for each in map(workload.run, "acx")] == [
        "2023-11-12T18:30:00Z", READY_SINCE, None,
    ]  # fmt: skip
    succeeded = ScheduledWorkload(NIGHTLY, cron_job(), [], runs[1:]).item(NOW).last_run
    assert succeeded is not None
    assert (succeeded["result"], succeeded["status"], succeeded["message"]) == ("succeeded", None, "")


def test_schedule_without_runs_is_in_force_until_it_is_removed_or_disabled() -> None:
    workload = ScheduledWorkload(NIGHTLY, cron_job(), [], [])
    assert workload.has_reached_goal
    item = workload.item(NOW)
    assert (item.state, item.ready, item.health, item.last_run) == ("sleeping", True, "ok", None)
    assert not ScheduledWorkload(NIGHTLY, None, [], []).has_reached_goal
    disabled = ServerConfig(name="nightly", job=True, command=["true"], every="30 3 * * *", disabled=True)
    assert ScheduledWorkload(disabled, None, [], []).item(NOW).state == "disabled"


def test_pods_that_have_ended_are_those_of_jobs_only() -> None:
    over, own = pod("web-2", phase="Failed"), pod("migrate-1", phase="Succeeded")
    own["metadata"]["labels"]["poolctl.dev/server"] = "migrate"
    found = workloads([WEB, MIGRATE], [deployment()], [job()], [pod(), over, own])
    assert {name: [each.name for each in server.pods] for name, server in found.items()} == {
        "web": ["web-1"], "migrate": ["migrate-1"],
    }  # fmt: skip


def test_scheduled_job_has_its_schedule_and_the_runs_of_its_own() -> None:
    schedule, one = cron_job(), run("nightly-1", READY_SINCE, "Complete")
    for each in (schedule, one):
        each["metadata"]["labels"] = {"poolctl.dev/server": "nightly"}
    found = workloads([MIGRATE, NIGHTLY], [], [job(), one], [], [schedule])["nightly"]
    assert isinstance(found, ScheduledWorkload)
    assert [each.job for each in found.ended_runs] == ["nightly-1"]
    assert not found.is_stopped


def test_run_whose_pod_cannot_start_is_a_failure() -> None:
    stuck = pod(ready=False, phase="Pending", container=waiting("ErrImagePull", "not found"))
    stuck["metadata"]["labels"]["job-name"] = "a"
    found = ScheduledWorkload(NIGHTLY, cron_job(), [Pod(stuck)], [run("a", READY_SINCE)]).failure()
    assert found is not None
    assert found.message.startswith("ErrImagePull: not found")
