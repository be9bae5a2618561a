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
from dataclasses import dataclass
from hashlib import blake2b
from urllib.parse import urlsplit

from poolctl.address import Address, parse
from poolctl.config import Probe, ServerConfig, with_resolved_references
from poolctl.config.values.problems import Tree
from poolctl.json_form import Table
from poolctl.runners.worker_spec import probe_argument_vector
from poolctl.units import format_duration

from ._environment import PodEnvironment
from ._keys import WAVE, cron_schedule, opens_own_port, quantity
from .table import Kubernetes

POOL, SERVER = "poolctl.dev/pool", "poolctl.dev/server"  # labels of all objects, and selectors
# Pods of the earlier revision need these objects until the rollout ends, which Argo CD and Flux do not know.
_PRUNED_LAST = {
    "argocd.argoproj.io/sync-options": "PruneLast=true",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
}
_CONFIG_DIRECTORY, _CONFIG_FILE = "/etc/poolctl", "pool.json"
_HEALTH_PORT = 9000
_FIRST_UNPRIVILEGED_PORT = 1024
_LIVENESS_SECONDS, _LIVENESS_FAILURES = 10, 3
# For an app without a readiness probe. The period is short, because kubelets before 1.22 send the first probe up to a
# whole period after the startup probe has succeeded.
_READINESS_SECONDS, _READINESS_FAILURES = 1, 10
_DIGEST_BYTES = 5
# Kubernetes' default, added to start_timeout for pulling the image, starting a node and waiting for dependencies.
_PROGRESS_SECONDS = 600
# A delayed run is dropped after this time; the CronJob controller checks every 10 s.
_MAX_RUN_DELAY_SECONDS = 30
_RUNS_KEPT = 3  # kept successful runs, and kept failed runs; their output is kept too
_MAX_WAIT_REQUESTS = {
    "cpu": "10m",
    "memory": "32M",
}  # upper bounds of the requests of the container that waits for dependencies
_NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# Draining a node does not count as a failed attempt of a job.
_POD_DISRUPTED = {"type": "DisruptionTarget", "status": "True"}
_SURVIVES_EVICTION = {"rules": [{"action": "Ignore", "onPodConditions": [_POD_DISRUPTED]}]}
# Keys of the server that `poolctl serve` needs in the pod.
_SERVE_KEYS = (
    "name", "expose", "app", "factory", "interface", "handler_key", "command", "socket", "umask", "http", "health",
    "job", "start_timeout", "stop_timeout", "stop_signal", "stop_group", "drain_timeout",
)  # fmt: skip

# Run by an init container: a Service accepts connections once one of its pods is ready.
WAIT_PROGRAM = """\
import signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    problem = ""
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
            break
        except OSError as error:
            if str(error) != problem:
                problem = str(error)
                print(f"waiting for {place}: {problem}", flush=True)
            time.sleep(0.2)
    print(f"{place} accepts connections", flush=True)
"""


@dataclass(frozen=True)
class SharedSettings:
    """The settings that all servers' objects share: the pool's name, table [kubernetes] and handler function.

    With `by_reference`, somebody else creates the Secrets with values of the environment.
    """

    name: str
    settings: Kubernetes
    handlers: str = ""
    by_reference: bool = False

    def manifest(
        self, api: str, kind: str, name: str, *, server: str = "", wave: int = 0, **rest: object
    ) -> Table:
        """An object of the pool, or of one of its servers."""
        namespace = {} if self.settings.namespace is None else {"namespace": self.settings.namespace}
        return {
            "apiVersion": api,
            "kind": kind,
            "metadata": {
                "name": name,
                **namespace,
                **self.metadata(server, wave, _PRUNED_LAST if "immutable" in rest else {}),
            },
            **rest,
        }

    def metadata(self, server: str, wave: int = 0, more: Mapping[str, str] = {}) -> Table:
        """The labels and annotations of an object or a pod; `more` are further annotations."""
        labels = {"app.kubernetes.io/part-of": self.name, "app.kubernetes.io/managed-by": "poolctl"}
        if server:
            server_labels = {
                "app.kubernetes.io/name": server,
                "app.kubernetes.io/instance": f"{self.name}-{server}",
            }
            labels = server_labels | labels | self.selector(server)
        else:
            labels[POOL] = self.name
        annotations = {**more, **self.settings.annotations, **({WAVE: str(wave)} if wave else {})}
        return {"labels": labels, **({"annotations": annotations} if annotations else {})}

    def selector(self, server: str) -> dict[str, str]:
        """The labels that select the server's pods. The selector of a Deployment can never change."""
        return {POOL: self.name, SERVER: server}


@dataclass(frozen=True)
class Deployed:
    """A server in its pods (see `in_pod`), with its environment there.

    `awaited` are the addresses (HOST:PORT) of dependencies; `wave` is the place in their order, from 0.
    """

    server: ServerConfig
    environment: PodEnvironment
    awaited: tuple[str, ...] = ()
    wave: int = 0


def with_service_addresses(servers: Iterable[ServerConfig]) -> list[ServerConfig]:
    """The servers with the names of their Services as addresses, also in references to each other."""
    return with_resolved_references(
        server.at(Address("tcp", host=server.name, port=server.address.port)) if server.listens else server
        for server in servers
    )


def in_pod(server: ServerConfig) -> ServerConfig:
    """The server that `with_service_addresses` returned, at the address that its program opens in the pod."""
    if not server.listens:
        return server
    return server.at(parse(f"0.0.0.0:{server.address.port}")).model_copy(update={"expose": server.expose})


def path_in_image(path: str, server: ServerConfig, settings: Kubernetes) -> str:
    """The path in the image for a path on this machine. Paths outside the directory of the file stay unchanged."""
    inside = posixpath.relpath(path, server.base_dir or "/")
    return path if inside.startswith("..") else posixpath.normpath(posixpath.join(settings.directory, inside))


def secret_name(deployed: Deployed, pool: SharedSettings) -> str:
    """The name of the server's own Secret; "" without one."""
    if not (deployed.environment.secret or deployed.environment.missing):
        return ""
    name = f"{pool.name}-{deployed.server.name}"
    return name if pool.by_reference else _with_digest(name, deployed.environment.secret)


def objects_of(deployed: Deployed, pool: SharedSettings) -> Iterator[Table]:
    """Build the objects of a server."""
    server = deployed.server
    port = server.address.port if server.listens else None
    name = f"{pool.name}-{server.name}"

    def manifest(api: str, kind: str, name: str, **rest: object) -> Table:
        return pool.manifest(api, kind, name, server=server.name, wave=deployed.wave, **rest)

    config = {_CONFIG_FILE: json.dumps(pod_configuration(server, pool), indent=1, sort_keys=True) + "\n"}
    config_name = _with_digest(name, config)
    yield manifest("v1", "ConfigMap", config_name, immutable=True, data=config)
    secret = secret_name(deployed, pool)
    if secret and not pool.by_reference:
        encoded = {
            key: base64.b64encode(value.encode(errors="surrogateescape")).decode()
            for key, value in deployed.environment.secret.items()
        }
        yield manifest("v1", "Secret", secret, immutable=True, type="Opaque", data=encoded)
    selector = pool.selector(server.name)
    if port is not None:
        ports = [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}]
        yield manifest("v1", "Service", server.name, spec={"selector": selector, "ports": ports})
    pod = _pod_spec(server, pool.settings, config_name, secret, deployed)
    template: Table = {"metadata": pool.metadata(server.name), "spec": pod}
    if server.job:
        pod["restartPolicy"] = "Never"
        attempts = 0 if server.every is not None or server.restart_policy == "no" else server.restart.limit
        job_spec = {"backoffLimit": attempts, "podFailurePolicy": _SURVIVES_EVICTION, "template": template}
        if server.every is not None:
            schedule: Table = {
                "schedule": cron_schedule(server.every),
                **({"timeZone": pool.settings.time_zone} if pool.settings.time_zone else {}),
                "concurrencyPolicy": "Forbid",
                "startingDeadlineSeconds": _MAX_RUN_DELAY_SECONDS,
                "suspend": server.disabled,
                "successfulJobsHistoryLimit": _RUNS_KEPT,
                "failedJobsHistoryLimit": _RUNS_KEPT,
                "jobTemplate": {"metadata": pool.metadata(server.name), "spec": job_spec},
            }
            yield manifest("batch/v1", "CronJob", name, spec=schedule)
            return
        # A Job is immutable: a changed server becomes a new Job, which runs again.
        yield manifest("batch/v1", "Job", _with_digest(name, template), spec=job_spec)
        return
    is_autoscaled = server.scale.is_automatic and not server.disabled
    replicas = {} if is_autoscaled else {"replicas": 0 if server.disabled else server.scale.min}
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    # A program without a port can be a scheduler, which must not run twice at the same time.
    runs_once = not server.overlap or (port is None and server.scale.max == 1)
    is_probed = port is not None or server.health.startup or server.health.readiness
    watched_seconds = 0 if is_probed else math.ceil(server.ready_after)
    spec = {
        **replicas,
        **({} if is_probed else {"minReadySeconds": watched_seconds}),
        "selector": {"matchLabels": selector},
        "strategy": {"type": "Recreate"} if runs_once else rolling,
        "progressDeadlineSeconds": _PROGRESS_SECONDS + math.ceil(server.start_timeout) + watched_seconds,
        "template": template,
    }
    if server.scale.max > 1:
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector},
                "matchLabelKeys": ["pod-template-hash"],
            }
        ]
    yield manifest("apps/v1", "Deployment", name, spec=spec)
    if server.scale.max > 1 and not server.disabled:
        budget = {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector},
        }
        yield manifest("policy/v1", "PodDisruptionBudget", name, spec=budget)
    if is_autoscaled:
        yield manifest("autoscaling/v2", "HorizontalPodAutoscaler", name, spec=_autoscaler_spec(server, name))


def digest_of(content: Mapping[str, object]) -> str:
    """A short digest of a table, for names and labels."""
    text = json.dumps(dict(content), sort_keys=True).encode()
    return blake2b(text, digest_size=_DIGEST_BYTES).hexdigest()


def pod_configuration(server: ServerConfig, pool: SharedSettings) -> Table:
    """A configuration file with this server alone, for use inside the image."""
    values = server.as_given()
    table: Table = {key: values[key] for key in _SERVE_KEYS if key in values}
    table |= {"name": server.name, **({"bind": server.bind} if server.listens else {})}
    for key in ("app_dir", "cwd"):
        table[key] = path_in_image(getattr(server, key), server, pool.settings)
    if server.command:
        table.pop("health", None)  # the kubelet probes it
        if opens_own_port(server):
            table["socket"] = "program"
    elif "health" in table:
        table["health"] = {kind: probe for kind, probe in table["health"].items() if "http" in probe}
    if server.scale.max > 1:
        table["scale"] = {"max": 2}  # tells `serve` that workers have no number
    if "log" in values:
        table["log"] = {"format": server.log.format}
    if server.limits.open_files is not None:
        table["limits"] = {"open_files": server.limits.open_files}
    handlers = {"handlers": pool.handlers} if pool.handlers and server.handler_key else {}
    escaped: Table = _escaped({"pool": {"name": pool.name, **handlers}, "server": [table]})
    # `env` overrides these variables of the address: take the values from the container.
    if env := {name: f"${{{name}}}" for name in server.address_variables if name in server.env}:
        escaped["server"][0]["env"] = env
    return escaped


def _escaped(value: Tree) -> Tree:
    """The value for a file, with `${` escaped."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(inner) for inner in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def _with_digest(name: str, content: Mapping[str, object]) -> str:
    return f"{name}-{digest_of(content)}"


def _pod_spec(
    server: ServerConfig, settings: Kubernetes, config: str, secret: str, deployed: Deployed
) -> dict[str, object]:
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
    port = server.address.port if server.listens else None
    delay_seconds = 0.0 if port is None else settings.stop_delay
    stopping_seconds = math.ceil(delay_seconds) + math.ceil(server.drain_timeout + server.stop_timeout)
    security: Table = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if port is not None and port < _FIRST_UNPRIVILEGED_PORT:
        security["sysctls"] = [{"name": "net.ipv4.ip_unprivileged_port_start", "value": str(port)}]
    image = server.image or settings.image
    container: dict[str, object] = {
        "name": "server",
        "image": image,
        **({"stdin": True} if server.stdin == "open" else {}),
        **_command_and_probes(server, delay_seconds, port),
        "workingDir": path_in_image(server.cwd, server, settings),  # where the kubelet runs probes
        **_variables(deployed.environment, secret, settings),
        **_resources(server, settings),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _NO_RIGHTS,
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG_DIRECTORY, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    wait_container = {
        "name": "wait",
        "image": image,
        "command": ["python3", "-c", WAIT_PROGRAM, *deployed.awaited],
        **_resources(server, settings, most=_MAX_WAIT_REQUESTS),
        "securityContext": _NO_RIGHTS,
    }
    service_account = settings.service_account
    pull_secrets = [{"name": name} for name in dict.fromkeys(settings.pull_secrets)]
    return {
        **(
            {"serviceAccountName": service_account}
            if service_account
            else {"automountServiceAccountToken": False}
        ),
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": stopping_seconds,
        "securityContext": security,
        **({"tolerations": tolerations} if tolerations else {}),
        **({"initContainers": [wait_container]} if deployed.awaited else {}),
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": config}}, {"name": "tmp", "emptyDir": {}}],
    }


def _variables(environment: PodEnvironment, secret: str, settings: Kubernetes) -> Table:
    """The container's `envFrom` and `env`. Later sources take precedence, and `env` over `envFrom`."""
    sources = [{"secretRef": {"name": name}} for name in (secret, *settings.secrets) if name]
    variables: list[Table] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}
        for name in environment.from_env
        if settings.secrets
    ]
    variables += [{"name": name, "value": _literal(value)} for name, value in environment.plain.items()]
    return {**({"envFrom": sources} if sources else {}), **({"env": variables} if variables else {})}


def _literal(text: str) -> str:
    """The text escaped for the kubelet, which replaces $(NAME) and $$."""
    return text.replace("$", "$$")


def _command_and_probes(server: ServerConfig, delay_seconds: float, port: int | None) -> Table:
    """The container's command, ports, probes, and shutdown delay."""
    file = posixpath.join(_CONFIG_DIRECTORY, _CONFIG_FILE)
    command = ["poolctl", "-c", file, "serve", server.name]
    ports = [] if port is None else [{"name": "http", "containerPort": port, "protocol": "TCP"}]
    if server.command:
        delay = {"lifecycle": {"preStop": {"sleep": {"seconds": math.ceil(delay_seconds)}}}}
        return {
            "command": command,
            **({"ports": ports} if ports else {}),
            **({} if server.job else _probes_of_command(server, port)),
            **(delay if delay_seconds else {}),
        }
    health = _HEALTH_PORT if port != _HEALTH_PORT else _HEALTH_PORT + 1
    command += ["--health", f"0.0.0.0:{health}", "--stop-delay", format_duration(delay_seconds)]
    ports.append({"name": "health", "containerPort": health, "protocol": "TCP"})
    return {"command": command, "ports": ports, **_probes_of_app(server)}


def _probes_of_app(server: ServerConfig) -> Table:
    """Return the container's probes: they ask `poolctl serve`, and `poolctl serve` probes the app as configured."""

    def get(path: str) -> Table:
        return {"httpGet": {"path": path, "port": "health"}}

    health = server.health
    readiness = _readiness_times(health.readiness, _READINESS_SECONDS, _READINESS_FAILURES)
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
        **({"readinessProbe": ready | _readiness_times(health.readiness)} if ready else {}),
        **({"livenessProbe": alive | _probe_times(health.liveness)} if alive else {}),
    }


def _probe_action(server: ServerConfig, probe: Probe | None) -> Table:
    if probe is None:
        return {}
    if probe.exec is not None:
        words = probe_argument_vector(server, probe.exec)
        return {"exec": {"command": [_literal(word) for word in words]}}
    if probe.tcp:
        return {"tcpSocket": {"port": "http"}}
    assert probe.http is not None, f"another kind of probe: {probe!r}"
    # The Host that poolctl sends: the kubelet would send the pod's address, which Django answers with 400.
    host = (
        {}
        if "host" in map(str.lower, probe.headers)
        else {"Host": urlsplit(server.expose).netloc.rpartition("@")[2]}
    )
    headers = [
        {"name": name, "value": value} for name, value in (host | dict(probe.headers)).items() if value
    ]
    return {
        "httpGet": {
            "path": probe.http,
            "port": "http",
            **({"scheme": "HTTPS"} if server.expose.startswith("https:") else {}),
            **({"httpHeaders": headers} if headers else {}),
        }
    }


def _startup_times(server: ServerConfig) -> Table:
    probe = server.health.startup
    period_seconds = 1 if probe is None else math.ceil(probe.interval)
    return _times(probe, period_seconds, math.ceil(server.start_timeout / period_seconds))


def _readiness_times(
    probe: Probe | None, period_seconds: int = _LIVENESS_SECONDS, failures: int = _LIVENESS_FAILURES
) -> Table:
    rises = {} if probe is None or probe.rise_count_ko == 1 else {"successThreshold": probe.rise_count_ko}
    return _probe_times(probe, period_seconds, failures) | rises


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


def _resources(server: ServerConfig, settings: Kubernetes, most: Mapping[str, str] | None = None) -> Table:
    """The container's limits, and its requests, which exceed neither `most` nor the limits."""
    limits = {} if server.limits.memory is None else {"memory": _quantity(server.limits.memory)}
    requests = {}
    for name, value in settings.requests:
        if value is not None:
            bounds = [quantities[name] for quantities in (most or {}, limits) if name in quantities]
            requests[name] = min([value, *bounds], key=lambda text: quantity(text) or 0)
    resources = {**({"requests": requests} if requests else {}), **({"limits": limits} if limits else {})}
    return {"resources": resources} if resources else {}


def _quantity(size: int) -> str:
    """The byte count in the API server's notation, so that `kubectl apply` sees no difference."""
    suffixes = iter(("", "k", "M", "G", "T"))
    suffix = next(suffixes)
    while size and size % 1000 == 0 and (larger := next(suffixes, None)):
        size, suffix = size // 1000, larger
    return f"{size}{suffix}"


def _autoscaler_spec(server: ServerConfig, name: str) -> Table:
    cores: float = server.scale.triggers.cpu  # type: ignore[attr-defined]  # of the feature for scaling
    target = {"type": "AverageValue", "averageValue": f"{max(1, round(cores * 1000))}m"}
    return {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": server.scale.min,
        "maxReplicas": server.scale.max,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
