"""Builds the Kubernetes objects of one server as plain dictionaries, in the order in which they are applied.

Deployment and Service keep their names. ConfigMap, Secret and Job are immutable and are named after the
digest of their content: changing a server is a rolling update of its Deployment alone, which
`kubectl rollout undo` reverts.
"""

from __future__ import annotations

import base64
import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from poolctl.address import parse
from poolctl.config import Probe, ServerConfig, with_resolved_references
from poolctl.config.values.plain import EMPTY
from poolctl.json_form import Table
from poolctl.runners.worker_spec import added_environment, probe_argument_vector

from ._keys import cron_schedule
from .table import Kubernetes

POOL, SERVER = "poolctl.dev/pool", "poolctl.dev/server"  # labels of all objects
_CONFIG_DIRECTORY, _CONFIG_FILE = "/etc/poolctl", "pool.json"
_HEALTH_PORT = 9000
_LIVENESS_SECONDS, _LIVENESS_FAILURES = 10, 3
# For an app without a readiness probe, whose event loop answers. The period is short, because kubelets before 1.22 ask
# for the first time up to a whole period after the startup probe has succeeded.
_READINESS_SECONDS, _READINESS_FAILURES = 1, 10
_GRACE_MARGIN_SECONDS = 5  # for the application's own shutdown
_DIGEST_BYTES = 5
# A run that could not begin at its time is dropped after this time; the CronJob controller looks every 10 s.
_LATEST_RUN_SECONDS = 30
_RUNS_KEPT = 3  # with their output: successful runs, and as many failed ones
_NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# Keys of the server that `poolctl serve` needs in the pod.
_CARRIED = (
    "name", "expose", "app", "factory", "interface", "handler_key", "command", "socket", "umask", "http", "health",
    "job", "start_timeout", "stop_timeout", "stop_group", "drain_timeout",
)  # fmt: skip


class SharedSettings(NamedTuple):
    """The settings that all servers' objects share: the pool's name, table [kubernetes] and handler function."""

    name: str
    settings: Kubernetes
    handlers: str = ""


# Run by an init container: a Service accepts connections once one of its pods is ready.
_WAIT = """\
import socket, sys, time
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
            break
        except OSError:
            time.sleep(0.2)
"""


def with_service_addresses(servers: Iterable[ServerConfig]) -> list[ServerConfig]:
    """The servers with the names of their Services as addresses, also in references between them."""
    return with_resolved_references(
        each.at(parse(f"{each.name}:{each.address.port}")) if each.listens else each for each in servers
    )


def objects_of(
    server: ServerConfig, pool: SharedSettings, places: Mapping[str, str] = EMPTY
) -> Iterator[Table]:
    """The objects for a server that `with_service_addresses` returned. Raises ServerError for an unreadable `env_file`.

    `places` maps server names to HOST:PORT; the pod waits until its dependencies accept connections there.
    """
    labels = {POOL: pool.name, SERVER: server.name}
    port = server.address.port if server.listens else None
    if port is not None:
        server = server.at(parse(f"0.0.0.0:{port}")).model_copy(update={"expose": server.expose})
    config = {_CONFIG_FILE: json.dumps(pod_configuration(server, pool), indent=1, sort_keys=True) + "\n"}
    variables = added_environment(server)
    config_name = _with_digest(f"{pool.name}-{server.name}", config)
    secret_name = _with_digest(f"{pool.name}-{server.name}", variables)

    def manifest(api: str, kind: str, name: str, **rest: object) -> Table:
        namespace = {} if pool.settings.namespace is None else {"namespace": pool.settings.namespace}
        return {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name, **namespace, "labels": labels},
            **rest,
        }

    yield manifest("v1", "ConfigMap", config_name, immutable=True, data=config)
    if variables:
        encoded = {
            name: base64.b64encode(value.encode(errors="surrogateescape")).decode()
            for name, value in sorted(variables.items())
        }
        yield manifest("v1", "Secret", secret_name, immutable=True, type="Opaque", data=encoded)
    if port is not None:
        ports = [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}]
        yield manifest("v1", "Service", server.name, spec={"selector": labels, "ports": ports})
    pod = _pod_spec(server, pool.settings, config_name, secret_name if variables else "", port)
    awaited = [places[each.name] for each in server.depends_on if each.name in places]
    if awaited:
        pod["initContainers"] = [_wait_container(awaited, str(server.image or pool.settings.image))]
    template: Table = {"metadata": {"labels": labels}, "spec": pod}
    name = f"{pool.name}-{server.name}"
    is_at_rest = server.disabled or server.on_demand
    if server.job:
        pod["restartPolicy"] = "Never"
        run = {"backoffLimit": 0, "template": template}
        if server.every is not None:
            schedule: Table = {
                "schedule": cron_schedule(server.every),
                **({"timeZone": pool.settings.time_zone} if pool.settings.time_zone else {}),
                "concurrencyPolicy": "Forbid",
                "startingDeadlineSeconds": _LATEST_RUN_SECONDS,
                "suspend": is_at_rest,
                "successfulJobsHistoryLimit": _RUNS_KEPT,
                "failedJobsHistoryLimit": _RUNS_KEPT,
                "jobTemplate": {"metadata": {"labels": labels}, "spec": run},
            }
            yield manifest("batch/v1", "CronJob", name, spec=schedule)
            return
        name = _with_digest(name, pod)  # a Job cannot be changed, and runs again when its server has changed
        suspended = {"suspend": True} if is_at_rest else {}
        yield manifest("batch/v1", "Job", name, spec={**run, **suspended})
        return
    scaled = server.scale.is_automatic and not server.disabled
    is_scaled_now = scaled and not server.on_demand  # an autoscaler does not act on 0 replicas
    replicas = {} if is_scaled_now else {"replicas": 0 if is_at_rest else server.scale.min}
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    # A program without a port may be a scheduler: two must not run at the same time.
    once = not server.overlap or (port is None and server.scale.max == 1)
    strategy = {"type": "Recreate"} if once else rolling
    spec = {**replicas, "selector": {"matchLabels": labels}, "strategy": strategy, "template": template}
    yield manifest("apps/v1", "Deployment", name, spec=spec)
    if scaled:
        yield manifest("autoscaling/v2", "HorizontalPodAutoscaler", name, spec=_autoscaler_spec(server, name))


def digest_of(content: Mapping[str, object]) -> str:
    """A short digest of a table, for names and labels."""
    text = json.dumps(dict(content), sort_keys=True).encode()
    return blake2b(text, digest_size=_DIGEST_BYTES).hexdigest()


def pod_configuration(server: ServerConfig, pool: SharedSettings) -> Table:
    """A configuration file with this server alone, for use inside the image."""
    values = server.to_dict()
    table = {key: values[key] for key in _CARRIED if key in server.model_fields_set and key in values}
    table |= {"name": server.name, **({"bind": server.bind} if server.listens else {})}
    for key in ("app_dir", "cwd"):
        table[key] = _in_image(str(values[key]), server.base_dir, pool.settings.directory)
    if "log" in server.model_fields_set:
        table["log"] = {"format": server.log.format}
    if server.limits.open_files is not None:
        table["limits"] = {"open_files": server.limits.open_files}
    handlers = {"handlers": pool.handlers} if pool.handlers and server.handler_key else {}
    return {"pool": {"name": pool.name, **handlers}, "server": [table]}


def _in_image(path: str, base: str, directory: str) -> str:
    """The path in the image for a path on this machine: `base` becomes `directory`, other paths stay unchanged."""
    inside = posixpath.relpath(path, base or "/")
    return path if inside.startswith("..") else posixpath.normpath(posixpath.join(directory, inside))


def _with_digest(name: str, content: Mapping[str, object]) -> str:
    return f"{name}-{digest_of(content)}"


def _pod_spec(
    server: ServerConfig, settings: Kubernetes, config: str, secret: str, port: int | None
) -> dict[str, object]:
    secrets = [*settings.secrets, *([secret] if secret else [])]
    tolerations = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": math.ceil(settings.node_lost_after),
        }
        for state in ("not-ready", "unreachable")
        if settings.node_lost_after is not None
    ]
    delay_seconds = 0.0 if server.job else settings.stop_delay
    stopping_seconds = delay_seconds + server.drain_timeout + server.stop_timeout
    container: dict[str, object] = {
        "name": "server",
        "image": server.image or settings.image,
        **({"stdin": True} if server.stdin == "open" else {}),
        **_command_and_probes(server, delay_seconds, port),
        "workingDir": settings.directory,
        **({"envFrom": [{"secretRef": {"name": name}} for name in secrets]} if secrets else {}),
        **_resources(server, settings),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _NO_RIGHTS,
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(stopping_seconds) + _GRACE_MARGIN_SECONDS,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **({"tolerations": tolerations} if tolerations else {}),
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": config}}, {"name": "tmp", "emptyDir": {}}],
    }


def _wait_container(places: list[str], image: str) -> Table:
    """Return the init container that waits until all addresses in `places` accept connections."""
    return {
        "name": "wait",
        "image": image,
        "command": ["python3", "-c", _WAIT, *places],
        "securityContext": _NO_RIGHTS,
    }


def _command_and_probes(server: ServerConfig, delay_seconds: float, port: int | None) -> Table:
    """The container's command, ports, probes, and shutdown delay."""
    file = posixpath.join(_CONFIG_DIRECTORY, _CONFIG_FILE)
    command = ["poolctl", "-c", file, "serve", server.name]
    ports = [] if port is None else [{"name": "http", "containerPort": port, "protocol": "TCP"}]
    if server.command:
        delay = {"lifecycle": {"preStop": {"exec": {"command": ["sleep", f"{delay_seconds:g}"]}}}}
        return {
            "command": command,
            **({"ports": ports} if ports else {}),
            **({} if server.job else _probes_of_command(server, port)),
            **(delay if delay_seconds and port is not None else {}),
        }
    health = _HEALTH_PORT if port != _HEALTH_PORT else _HEALTH_PORT + 1
    command += ["--health", f"0.0.0.0:{health}", "--stop-delay", f"{delay_seconds:g}s"]
    ports.append({"name": "health", "containerPort": health, "protocol": "TCP"})
    return {"command": command, "ports": ports, **_probes_of_app(server)}


def _probes_of_app(server: ServerConfig) -> Table:
    """Return the container's probes: they ask `poolctl serve`, and `poolctl serve` probes the app as configured."""

    def get(path: str) -> Table:
        return {"httpGet": {"path": path, "port": "health"}}

    health = server.health
    readiness = _probe_times(health.readiness, _READINESS_SECONDS, _READINESS_FAILURES)
    return {
        "startupProbe": get("/health") | _startup_times(server),
        "readinessProbe": get("/health") | readiness,
        "livenessProbe": get("/health/live") | _probe_times(health.liveness),
    }


def _probes_of_command(server: ServerConfig, port: int | None) -> Table:
    """The probes of a server that runs a command; startup and readiness default to connecting to its port."""
    health = server.health
    connect: Table = {} if port is None else {"tcpSocket": {"port": "http"}}
    ready = _probe_action(server, health.readiness) or connect
    first = _probe_action(server, health.startup) or ready
    alive = _probe_action(server, health.liveness)
    return {
        **({"startupProbe": first | _startup_times(server)} if first else {}),
        **({"readinessProbe": ready | _probe_times(health.readiness)} if ready else {}),
        **({"livenessProbe": alive | _probe_times(health.liveness)} if alive else {}),
    }


def _probe_action(server: ServerConfig, probe: Probe | None) -> Table:
    if probe is None:
        return {}
    if probe.exec is not None:
        return {"exec": {"command": probe_argument_vector(server, probe.exec)}}
    if probe.http is None:
        return {"tcpSocket": {"port": "http"}}
    headers = [{"name": name, "value": value} for name, value in probe.headers.items()]
    return {"httpGet": {"path": probe.http, "port": "http", **({"httpHeaders": headers} if headers else {})}}


def _startup_times(server: ServerConfig) -> Table:
    return _times(server.health.startup, 1, math.ceil(server.start_timeout))


def _probe_times(
    probe: Probe | None, period_seconds: int = _LIVENESS_SECONDS, failures: int = _LIVENESS_FAILURES
) -> Table:
    """Period, timeout and failure threshold; `period_seconds` and `failures` apply if no probe is configured."""
    if probe is not None:
        period_seconds, failures = math.ceil(probe.interval), probe.fall_count_warn + probe.fall_count_ko
    return _times(probe, period_seconds, failures)


def _times(probe: Probe | None, period_seconds: int, failures: int) -> Table:
    # Longer than the probe's own timeout, so that the answer can report the reason of a failure.
    timeout_seconds = math.ceil(2.0 if probe is None else probe.timeout) + 1
    return {
        "periodSeconds": period_seconds,
        "timeoutSeconds": timeout_seconds,
        "failureThreshold": failures,
    }


def _resources(server: ServerConfig, settings: Kubernetes) -> Table:
    requests = {name: value for name, value in settings.requests if value is not None}
    limits = {} if server.limits.memory is None else {"memory": _quantity(server.limits.memory)}
    found = {**({"requests": requests} if requests else {}), **({"limits": limits} if limits else {})}
    return {"resources": found} if found else {}


def _quantity(size: int) -> str:
    """The byte count in the API server's notation, so that `kubectl apply` sees no difference."""
    suffixes = iter(("", "k", "M", "G", "T"))
    suffix = next(suffixes)
    while size and size % 1000 == 0 and (larger := next(suffixes, None)):
        size, suffix = size // 1000, larger
    return f"{size}{suffix}"


def _autoscaler_spec(server: ServerConfig, name: str) -> Table:
    cores: float = server.scale.triggers.cpu  # type: ignore[attr-defined]  # of the feature for scaling
    target = {"type": "AverageValue", "averageValue": f"{round(cores * 1000)}m"}
    return {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": server.scale.min,
        "maxReplicas": server.scale.max,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
