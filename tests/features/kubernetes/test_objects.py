"""Every server that is not refused becomes valid objects."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import ServerConfig, load, table_text, with_resolved_references
from poolctl.config.model.server_tables import PROBE_KINDS
from poolctl.feature import FEATURES
from poolctl.features.kubernetes._environment import PodEnvironment
from poolctl.features.kubernetes._keys import cron_schedule, unsupported_keys
from poolctl.features.kubernetes._objects import (
    Deployed,
    SharedSettings,
    in_pod,
    objects_of,
    with_service_addresses,
)
from poolctl.features.kubernetes.table import Kubernetes
from poolctl.time_windows import BadWindow, parse_window
from tests.configuration import server
from tests.examples import examples

from .valid_objects import assert_valid

seconds = st.floats(0.1, 1e5)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
probes = st.fixed_dictionaries(
    {"http": st.sampled_from(["/", "/a?b=c"]), "interval": seconds, "timeout": seconds},
    optional={"headers": st.dictionaries(st.sampled_from(["X-A", "Host"]), st.sampled_from(["a", "b c"]))},
)
common = {
    "scale": st.integers(1, 9).flatmap(lambda least: st.fixed_dictionaries({"min": st.just(least)})),
    "env": st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), texts, max_size=3),
    "disabled": st.booleans(),
    "start_timeout": seconds,
    "stop_timeout": seconds,
    "drain_timeout": seconds,
    "limits": st.fixed_dictionaries({"memory": st.integers(2**20, 2**40)}),
}
of_apps = st.fixed_dictionaries(
    {"bind": st.integers(1, 65535).map("127.0.0.1:{}".format), "app": st.just("a.b:c")},
    optional={
        **common,
        "factory": st.booleans(),
        "health": st.fixed_dictionaries(
            {"readiness": probes}, optional={"liveness": probes, "startup": probes}
        ),
    },
)
of_commands = st.fixed_dictionaries(
    {"command": st.lists(texts.filter(bool), min_size=1, max_size=3)},
    optional={**common, "bind": st.integers(1, 65535).map(":{}".format)},
)
settings = st.fixed_dictionaries(
    {"image": st.just("shop:1")},
    optional={
        "namespace": st.just("shop"),
        "node_lost_after": seconds,
        "stop_delay": seconds,
        "secrets": st.lists(st.just("known"), max_size=1),
        "requests": st.fixed_dictionaries({"cpu": st.just("100m")}),
    },
)


@pytest.mark.slow
@given(keys=of_apps | of_commands, given_settings=settings)
@examples(200)
def test_every_server_becomes_valid_objects(keys: dict[str, Any], given_settings: dict[str, Any]) -> None:
    config = ServerConfig(name="web", **keys)
    assert list(unsupported_keys(config)) == []
    pool = SharedSettings("shop", Kubernetes(**given_settings))
    moved = in_pod(*with_service_addresses([config]))
    deployed = Deployed(moved, PodEnvironment.of(moved, "/app"))
    objects = list(objects_of(deployed, pool))
    for each in objects:
        assert_valid(each)
    assert json.dumps(objects) == json.dumps(list(objects_of(deployed, pool)))
    (text,) = (each["data"]["pool.json"] for each in objects if each["kind"] == "ConfigMap")
    with tempfile.TemporaryDirectory() as place:
        (path := Path(place) / "pool.json").write_text(text)
        read = load(path, config.env)
    assert [str(each) for each in read.problems] == [], "what serve would refuse in the pod"
    (there,) = with_resolved_references(read)
    assert (there.command, there.app) == (config.command, config.app)
    kinds = [each["kind"] for each in objects]
    assert ("Service" in kinds) == config.listens
    assert ("Secret" in kinds) == bool(config.env)
    assert ("PodDisruptionBudget" in kinds) == (config.scale.max > 1 and not config.disabled)
    (spec,) = (each["spec"] for each in objects if each["kind"] == "Deployment")
    assert spec["replicas"] == (0 if config.disabled else config.scale.min)
    selected = spec["selector"]["matchLabels"]
    assert selected == {"poolctl.dev/pool": "shop", "poolctl.dev/server": "web"}
    assert selected.items() <= spec["template"]["metadata"]["labels"].items()


def of_cron_job(schedule: str, moment: date) -> set[int]:
    """The minutes of this day at which a CronJob runs (robfig/cron v3, ParseStandard)."""
    fields = []
    for text, least, most in zip(schedule.split(), (0, 0, 1, 1, 0), (59, 23, 31, 12, 6), strict=True):
        found = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            begin, end = (least, most) if part == "*" else (int(first), int(last or first))
            assert least <= begin <= end <= most
            found |= {*range(begin, end + 1)}
        fields.append((found, "*" in text))
    (minutes, _), (hours, _), (days, any_day), (months, _), (weekdays, any_weekday) = fields
    in_month, in_week = moment.day in days, moment.isoweekday() % 7 in weekdays
    runs = in_month and in_week if any_day or any_weekday else in_month or in_week
    return {60 * h + m for h in hours for m in minutes} if runs and moment.month in months else set()


def parts(least: int, most: int, *names: str) -> Any:
    numbers = st.integers(least, most)
    spans = st.tuples(numbers, numbers).map(lambda two: f"{min(two)}-{max(two)}")
    part = st.one_of(st.just("*"), numbers.map(str), spans, st.integers(1, 40).map("*/{}".format))
    lists = st.lists(part, min_size=1, max_size=2).map(",".join)
    return lists | st.sampled_from(names) if names else lists


@pytest.mark.slow
@given(
    fields=st.tuples(
        parts(0, 59), parts(0, 23), parts(1, 31), parts(1, 12, "jan-mar"), parts(0, 7, "fri-sun", "mon-fri,7")
    ),
    moment=st.dates(date(2024, 1, 1), date(2031, 12, 31)),
)
@examples(300)
def test_cron_job_runs_at_the_times_of_every(fields: tuple[str, ...], moment: date) -> None:
    text = " ".join(fields)
    try:
        window = parse_window(text)
    except BadWindow:
        return
    schedule = cron_schedule(text)
    if schedule is None:
        assert fields[2].startswith("*") or fields[4].startswith("*")
        return
    bits = window.minute_mask_on(moment)
    assert of_cron_job(schedule, moment) == {minute for minute in range(1440) if bits >> minute & 1}


@pytest.mark.parametrize(
    ("every", "schedule"),
    [
        ("0 3 * * *", "0 3 * * *"),
        ("*/15 8-18 * * mon-fri", "0,15,30,45 8-18 * * 1-5"),
        ("0 0 1 * sun", "0 0 1 * 0"),
        ("0 0 * * fri-sun", "0 0 * * 0,5-6"),
        ("0 0 */2 * mon", None),  # both restrict here, and one suffices on a cluster
    ],
)
def test_schedule_has_numbers_alone(every: str, schedule: str | None) -> None:
    assert cron_schedule(every) == schedule


Made = Callable[..., dict[str, Any]]


@pytest.fixture
def made(poolctl: Any, directory: Path) -> Made:
    """`made(**keys)`: the objects of the server "web" by their kinds, in order.

    `table` is [kubernetes], and `others` are the tables of other servers.
    """

    def run(
        *, table: Mapping[str, Any] = {}, handlers: str = "", others: str = "", **keys: Any
    ) -> dict[str, Any]:
        pool = table_text("[pool]", {"name": "shop", **({"handlers": handlers} if handlers else {})})
        settings = table_text("[kubernetes]", {"image": "shop:1", **table})
        (directory / "pool.toml").write_text("\n".join((pool, settings, server("web", **keys), others)))
        done = poolctl("export", "kubernetes")
        assert done.code == 0, done.err
        objects = yaml.safe_load_all(done.out)
        return {
            each["kind"]: each
            for each in objects
            if each["metadata"]["labels"]["poolctl.dev/server"] == "web"
        }

    return run


@pytest.fixture
def container(made: Made) -> Made:
    return lambda **keys: made(**keys)["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def configuration(objects: dict[str, Any]) -> dict[str, Any]:
    """The file that `poolctl serve` reads in the pod."""
    found: dict[str, Any] = json.loads(objects["ConfigMap"]["data"]["pool.json"])
    return found


SELECTOR = {"poolctl.dev/pool": "shop", "poolctl.dev/server": "web"}
LABELS = {
    "app.kubernetes.io/name": "web", "app.kubernetes.io/instance": "shop-web", "app.kubernetes.io/part-of": "shop",
    "app.kubernetes.io/managed-by": "poolctl", **SELECTOR,
}  # fmt: skip
NO_RIGHTS = {
    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
}  # fmt: skip
HEALTH = {
    "readiness": {"http": "/r", "interval": 2.5, "timeout": 1.2},
    "startup": {"tcp": True, "timeout": 3},
    "liveness": {"http": "/l", "fall_count_ko": 1, "fall_count_warn": 1, "interval": 0.1},
}


def test_app_has_a_configuration_variables_a_service_and_pods(made: Made) -> None:
    found = made(
        app="a.b:c", bind="127.0.0.1:8080", env={"B": "2", "A": "1"}, app_dir="/srv/x", cwd="/srv/x",
        limits={"memory": "1GiB", "open_files": 100}, log={"format": "json", "keep": 2}, health=HEALTH,
        start_timeout=10.5, drain_timeout=1.5, scale={"min": 2, "max": 2},
        depends_on=["db"], others=server("db", command=["db"], bind=":5432"),
        table={
            "namespace": "ns", "secrets": ["known"], "requests": {"cpu": "100m", "memory": "1Gi"},
            "node_lost_after": 9.5,
        },
    )  # fmt: skip
    assert list(found) == ["ConfigMap", "Secret", "Service", "Deployment", "PodDisruptionBudget"]
    for each in found.values():
        assert (each["metadata"]["namespace"], each["metadata"]["labels"]) == ("ns", LABELS)
    versions = {kind: each["apiVersion"] for kind, each in found.items()}
    assert versions == {
        "ConfigMap": "v1", "Secret": "v1", "Service": "v1", "Deployment": "apps/v1", "PodDisruptionBudget": "policy/v1",
    }  # fmt: skip
    config, secret = found["ConfigMap"], found["Secret"]
    assert config["immutable"] is secret["immutable"] is True
    (file,) = config["data"].items()
    pool = json.loads(file[1])
    assert (file[0], pool["pool"]) == ("pool.json", {"name": "shop"})
    (in_pod_file,) = pool["server"]
    assert in_pod_file.pop("health").keys() == {"readiness", "liveness"}, "others are of the kubelet"
    assert in_pod_file == {
        "name": "web", "app": "a.b:c", "app_dir": "/srv/x", "cwd": "/srv/x", "bind": "0.0.0.0:8080",
        "expose": "http://web:8080", "limits": {"open_files": 100}, "log": {"format": "json"}, "start_timeout": 10.5,
        "drain_timeout": 1.5, "scale": {"max": 2},
    }  # fmt: skip
    assert (secret["type"], secret["data"]) == ("Opaque", {"A": "MQ==", "B": "Mg=="})
    service = found["Service"]
    assert service["metadata"]["name"] == "web"
    assert service["spec"] == {
        "selector": SELECTOR,
        "ports": [{"name": "http", "port": 8080, "targetPort": "http", "protocol": "TCP"}],
    }
    deployment = found["Deployment"]
    assert deployment["metadata"]["name"] == "shop-web"
    spec = deployment["spec"]
    assert (spec["replicas"], spec["selector"]) == (2, {"matchLabels": SELECTOR})
    assert spec["progressDeadlineSeconds"] == 611
    rolling = {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    pod = spec["template"]["spec"]
    (wait,), (main,) = pod.pop("initContainers"), pod.pop("containers")
    tolerations = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 10,
        }
        for state in ("not-ready", "unreachable")
    ]
    assert pod == {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(5 + 1.5 + 10),
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": tolerations,
        "volumes": [
            {"name": "config", "configMap": {"name": config["metadata"]["name"]}},
            {"name": "tmp", "emptyDir": {}},
        ],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": SELECTOR},
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
    }
    assert wait.pop("command")[3:] == ["db:5432"]
    small = {"requests": {"cpu": "10m", "memory": "32M"}, "limits": {"memory": "1073741824"}}
    assert wait == {"name": "wait", "image": "shop:1", "resources": small, "securityContext": NO_RIGHTS}
    assert found["PodDisruptionBudget"]["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": SELECTOR},
    }
    words = "poolctl -c /etc/poolctl/pool.json serve web --health 0.0.0.0:9000 --stop-delay 5s"
    assert main == {
        "name": "server",
        "image": "shop:1",
        "command": words.split(),
        "ports": [
            {"name": "http", "containerPort": 8080, "protocol": "TCP"},
            {"name": "health", "containerPort": 9000, "protocol": "TCP"},
        ],
        "startupProbe": {
            "httpGet": {"path": "/health", "port": "health"},
            "periodSeconds": 5, "timeoutSeconds": 4, "failureThreshold": 3,
        },
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": "health"},
            "periodSeconds": 3, "timeoutSeconds": 3, "failureThreshold": 4,
        },
        "livenessProbe": {
            "httpGet": {"path": "/health/live", "port": "health"},
            "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 2,
        },
        "workingDir": "/srv/x",
        "envFrom": [{"secretRef": {"name": name}} for name in (secret["metadata"]["name"], "known")],
        "env": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": secret["metadata"]["name"], "key": name}}}
            for name in ("A", "B")
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "1073741824"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": NO_RIGHTS,
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/poolctl", "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"},
        ],
    }  # fmt: skip


def test_app_without_probes_is_asked_often_whether_it_is_ready(container: Made) -> None:
    found = container(app="a:b", bind=":80")
    times = {
        kind: (found[kind]["periodSeconds"], found[kind]["timeoutSeconds"], found[kind]["failureThreshold"])
        for kind in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert times == {"startupProbe": (1, 3, 30), "readinessProbe": (1, 3, 10), "livenessProbe": (10, 3, 3)}
    assert found.keys() & {"envFrom", "resources", "lifecycle"} == set()


@pytest.mark.parametrize(("port", "health"), [(8999, 9000), (9000, 9001), (9001, 9000)])
def test_health_port_differs_from_the_port_of_the_app(container: Made, port: int, health: int) -> None:
    found = container(app="a:b", bind=f":{port}", table={"stop_delay": 0})
    assert [each["containerPort"] for each in found["ports"]] == [port, health]
    assert found["command"][5:] == ["--health", f"0.0.0.0:{health}", "--stop-delay", "0s"]


HOST = {"name": "Host", "value": "web:80"}
CONNECT = {"tcpSocket": {"port": "http"}}


@pytest.mark.parametrize(
    ("health", "startup", "readiness", "liveness"),
    [
        ({}, CONNECT, CONNECT, None),
        ({"readiness": {"exec": ["ok", "1"]}}, {"exec": {"command": ["ok", "1"]}}, {"exec": {"command": ["ok", "1"]}},
         None),
        ({"startup": {"http": "/s", "headers": {"X": "y"}}, "liveness": {"tcp": True}},
         {"httpGet": {"path": "/s", "port": "http", "httpHeaders": [HOST, {"name": "X", "value": "y"}]}}, CONNECT,
         CONNECT),
        ({"liveness": {"http": "/l"}}, CONNECT, CONNECT,
         {"httpGet": {"path": "/l", "port": "http", "httpHeaders": [HOST]}}),
    ],
)  # fmt: skip
def test_probes_of_a_command_are_run_by_the_kubelet(
    container: Made, health: dict[str, Any], startup: Any, readiness: Any, liveness: Any
) -> None:
    found = container(command=["serve"], bind=":80", health=health)
    period = 5 if "startup" in health else 1
    started = {"periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": 30 // period}
    asked = {"periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 4}
    usual = {"periodSeconds": 10, "timeoutSeconds": 3, "failureThreshold": 3}
    assert found["startupProbe"] == startup | started
    assert found["readinessProbe"] == readiness | (asked if "readiness" in health else usual)
    assert found.get("livenessProbe") == (liveness and liveness | asked)
    assert found["command"] == ["poolctl", "-c", "/etc/poolctl/pool.json", "serve", "web"]
    assert found["ports"] == [{"name": "http", "containerPort": 80, "protocol": "TCP"}]
    assert found["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert "lifecycle" not in container(command=["serve"], bind=":80", table={"stop_delay": 0})


def test_each_kind_of_probe_has_an_equal_in_a_pod(container: Made) -> None:
    examples = {"http": "/", "tcp": True, "exec": ["ok"]}
    assert examples.keys() == {*PROBE_KINDS}, "give each kind of probe an example above"
    for kind in PROBE_KINDS:
        found = container(command=["serve"], bind=":80", health={"liveness": {kind: examples[kind]}})
        assert found["livenessProbe"]


def test_command_without_a_port_has_neither_a_service_nor_probes_and_never_runs_twice(
    made: Made, container: Made
) -> None:
    found = made(command=["tick"])
    assert list(found) == ["ConfigMap", "Deployment"]
    assert found["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    of_pod = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert of_pod.keys() & {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"} == set()
    probed = container(command=["tick"], health={"liveness": {"exec": ["ok"]}})
    assert probed["livenessProbe"]["exec"] == {"command": ["ok"]}
    assert probed.keys() & {"startupProbe", "readinessProbe"} == set()


@pytest.mark.parametrize(
    ("keys", "strategy"),
    [
        ({"command": ["tick"], "scale": {"min": 2}}, "RollingUpdate"),
        ({"app": "a:b", "bind": ":80", "overlap": False}, "Recreate"),
        ({"app": "a:b", "bind": ":80"}, "RollingUpdate"),
    ],
)
def test_pods_overlap_unless_two_may_not_run_at_the_same_time(
    made: Made, keys: dict[str, Any], strategy: str
) -> None:
    assert made(**keys)["Deployment"]["spec"]["strategy"]["type"] == strategy


def test_disabled_server_has_no_pods(made: Made) -> None:
    assert made(app="a:b", bind=":80", disabled=True)["Deployment"]["spec"]["replicas"] == 0


def test_job_runs_once_and_again_when_it_has_changed(made: Made) -> None:
    found = made(command=["tick"], job=True)
    assert list(found) == ["ConfigMap", "Job"]
    job = found["Job"]
    assert (job["apiVersion"], job["spec"]["backoffLimit"]) == ("batch/v1", 8), "restart.limit"
    assert made(command=["tick"], job=True, restart="no")["Job"]["spec"]["backoffLimit"] == 0
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }, "a drain"
    assert "ttlSecondsAfterFinished" not in job["spec"], "Argo CD would create it again"
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 30 + 10, "it has no delay"
    assert pod["containers"][0].keys() & {"lifecycle", "startupProbe", "livenessProbe"} == set()
    name = job["metadata"]["name"]
    assert re.fullmatch("shop-web-[0-9a-f]{10}", name)
    assert made(command=["tick"], job=True)["Job"]["metadata"]["name"] == name
    assert made(command=["tock"], job=True)["Job"]["metadata"]["name"] != name


@pytest.mark.parametrize(
    ("disabled", "table", "zone"),
    [
        (False, {}, {"timeZone": "Etc/UTC"}),
        (True, {"time_zone": ""}, {}),
        (False, {"time_zone": "Europe/Berlin"}, {"timeZone": "Europe/Berlin"}),
    ],
)
def test_scheduled_job_runs_at_its_times(
    made: Made, disabled: bool, table: dict[str, str], zone: dict[str, str]
) -> None:
    db = server("db", command=["db"], bind=":5432")
    keys = {"command": ["tick"], "job": True, "every": "5 4 * * *", "depends_on": ["db"]}
    found = made(**keys, disabled=disabled, table=table, others=db)
    assert list(found) == ["ConfigMap", "CronJob"]
    cron = found["CronJob"]
    assert (cron["apiVersion"], cron["metadata"]["name"]) == ("batch/v1", "shop-web")
    template = cron["spec"].pop("jobTemplate")
    assert cron["spec"] == {
        "schedule": "5 4 * * *", **zone, "concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 30,
        "suspend": disabled, "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 3,
    }  # fmt: skip
    assert template["metadata"] == {"labels": LABELS}
    assert template["spec"]["backoffLimit"] == 0
    pod = template["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["initContainers"][0]["command"][-1]) == ("Never", "db:5432")


@pytest.mark.skipif("scaling" not in FEATURES, reason="the number of workers does not change")
@pytest.mark.parametrize(("cores", "average"), [(0.25, "250m"), (0.0001, "1m")])
def test_automatic_scale_is_left_to_the_cluster_while_the_server_is_enabled(
    made: Made, cores: float, average: str
) -> None:
    keys = {"app": "a:b", "bind": ":80", "scale": {"min": 1, "max": 3, "triggers": {"cpu": cores}}}
    found = made(**keys)
    assert list(found)[-3:] == ["Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler"]
    assert "replicas" not in found["Deployment"]["spec"]
    target = {"type": "AverageValue", "averageValue": average}
    assert found["HorizontalPodAutoscaler"]["spec"] == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop-web"},
        "minReplicas": 1,
        "maxReplicas": 3,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    assert list(made(**keys, disabled=True))[-1] == "Deployment"


def test_paths_and_handlers_are_those_of_the_image(made: Made) -> None:
    keys: dict[str, Any] = {"bind": ":80", "table": {"directory": "/srv"}, "handlers": "apps:all"}
    found = configuration(made(handler_key="x", app_dir="lib", **keys))
    assert found["pool"] == {"name": "shop", "handlers": "apps:all"}
    assert [found["server"][0][key] for key in ("app_dir", "cwd", "handler_key")] == ["/srv/lib", "/srv", "x"]
    found = configuration(made(app="a:b", cwd="/elsewhere", **keys))
    assert found["pool"] == {"name": "shop"}
    assert [found["server"][0][key] for key in ("app_dir", "cwd")] == ["/srv", "/elsewhere"]


@pytest.mark.parametrize(("keys", "stdin"), [({}, None), ({"stdin": "open"}, True)])
def test_open_input_of_a_command_is_that_of_its_container(
    made: Made, container: Made, keys: dict[str, str], stdin: bool | None
) -> None:
    assert container(command=["x"], **keys).get("stdin") is stdin
    assert "stdin" not in configuration(made(command=["x"], **keys))["server"][0]


def test_command_is_stopped_in_the_pod_as_in_the_file(made: Made) -> None:
    keys = {"command": ["sh", "-c", "cd x && y"], "stop_group": "together", "stop_signal": "SIGINT"}
    found = configuration(made(**keys, stop_timeout=5))["server"][0]
    assert {key: found[key] for key in (*keys, "stop_timeout")} == {**keys, "stop_timeout": 5.0}


@pytest.mark.parametrize(("size", "text"), [(1500, "1500"), (200_000_000, "200M"), (5 * 10**15, "5000T")])
def test_memory_is_written_as_the_api_server_writes_it(container: Made, size: int, text: str) -> None:
    assert container(command=["x"], limits={"memory": size})["resources"]["limits"] == {"memory": text}
