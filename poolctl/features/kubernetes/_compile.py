"""Compiles each server of a pool into Kubernetes objects, or reports the keys that make this impossible."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple

from poolctl.cli.outcome import Failure, Outcome
from poolctl.config import Configuration, Finding, ServerConfig
from poolctl.config.model.pool_tables import Located
from poolctl.control.answers import ErrorEntry
from poolctl.errors import ServerError
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.json_form import Table
from poolctl.supervisor.active_configuration import default_name

from ._environment import PodEnvironment, PoolVariables, create_command, without_local_env_file
from ._keys import (
    MAX_JOB_NAME_LENGTH,
    ignored_keys,
    is_label,
    opens_own_port,
    probe_keys_left_out,
    secret_keys,
    settings_problems,
    unsupported_keys,
    variable_problems,
)
from ._objects import (
    Deployed,
    SharedSettings,
    in_pod,
    objects_of,
    path_in_image,
    pod_configuration,
    secret_name,
    with_service_addresses,
)
from ._routes import CompiledRoutes, compile_routes
from .table import Kubernetes

_GATEWAY, _ROUTE = "gateway", "route"  # names of tables
_INDEX = "POOLCTL_INDEX"


class CompiledPool(NamedTuple):
    """A pool compiled for a cluster: objects by server name, dependencies first, and the objects of its routes.

    `warnings` name the keys that are ignored, and the routes and tables that are not exported. `create_secrets` are
    commands for Secrets that the objects only name.
    """

    name: str
    objects: dict[str, list[Table]]
    routes: list[Table]
    warnings: list[str]
    create_secrets: list[str]


def compile_pool(
    config: Configuration, files: Sequence[str], *, by_reference: bool = False, directory: str = ""
) -> CompiledPool:
    """Compile the pool. Raises Failure (5) with all unsupported keys, or all unreadable env files.

    `directory` is where the files will be, for commands in warnings.
    """
    settings = config.tables.get(Kubernetes)
    if settings is None:
        hint = 'add [kubernetes] with image = "registry.example.com/shop:1.4"'
        raise Failure(Outcome.failed(INVALID_CONFIGURATION, "the pool has no table [kubernetes]", hint))
    handlers = next((server.handlers for server in config if server.handlers), "")
    name = config.settings.name or default_name(files[0])
    pool = SharedSettings(name, settings, handlers, by_reference)
    running = _servers_with_pods(config)
    dependencies = {
        server.name: [other.name for other in server.depends_on if other.name in running] for server in config
    }
    waves = _waves(dependencies)
    servers = sorted(config, key=lambda server: waves[server.name])
    variables = PoolVariables.of(files)
    hidden = variables.values()
    _raise_if_problems(config, _problems(servers, pool, hidden))
    addressed = with_service_addresses(without_local_env_file(config, server) for server in servers)
    in_pods = [
        in_pod(server).model_copy(update={"disabled": server.name not in running})
        for server in addressed
        # A suspended Job is never healthy: Argo CD would wait for it.
        if server.name in running or not server.job or server.every is not None
    ]
    environments: dict[str, PodEnvironment] = {}
    unreadable: list[Located] = []
    for pod in in_pods:
        cwd = path_in_image(pod.cwd, pod, settings)
        try:
            environments[pod.name] = PodEnvironment.of(pod, cwd, by_reference=by_reference, hidden=hidden)
        except ServerError as error:
            unreadable.append((pod, Finding(("env_file",), error.message, error.hint)))
    _raise_if_problems(config, unreadable)
    _raise_if_problems(
        config,
        (
            (pod, finding)
            for pod in in_pods
            for finding in (
                *_secrets(pod, pool, hidden),
                *variable_problems(pod, environments[pod.name].secret),
            )
        ),
    )
    routes = CompiledRoutes([], [], [], [])
    is_routed = settings.gateway is not None or settings.ingress_class is not None
    if is_routed:
        by_name = {server.name: server for server in addressed}
        last = max(waves.values(), default=0)
        routes = compile_routes(servers, by_name, config.tables, pool, last, hidden)
        _raise_if_problems(config, routes.problems)
    deployed = {
        pod.name: Deployed(
            pod, environments[pod.name], _awaited(dependencies[pod.name], in_pods), waves[pod.name]
        )
        for pod in in_pods
    }
    objects = {name: list(objects_of(deployment, pool)) for name, deployment in deployed.items()}
    apply_first_texts = {
        name: _apply_first(name, manifests[-1]["metadata"], directory)
        for name, manifests in objects.items()
        if manifests[-1]["kind"] == "Job"
    }
    findings = (
        (server, finding)
        for server in servers
        for finding in (
            *ignored_keys(server, config.origin_of(server) or (), is_routed=is_routed),
            *probe_keys_left_out(server),
            *_index_used(server),
            *_ready_too_early(server),
            *_dependency_warnings(server, servers, running, apply_first_texts),
        )
    )
    warnings = [str(warning) for warning in config.located([*findings, *routes.ignored])] + routes.warnings
    warnings += [
        f"[{table}] is not exported: {_reason_not_exported(table, is_routed=is_routed)}"
        for table in config.tables.by_name()
        if table in variables.tables - {Kubernetes.table_name} and not (table == _ROUTE and is_routed)
    ]
    commands = [
        deployment.environment.create_command(secret, settings.namespace)
        for deployment in deployed.values()
        if by_reference and (secret := secret_name(deployment, pool))
    ]
    if by_reference:
        commands += [
            create_command(name, settings.namespace, "--from-env-file=FILE") for name in settings.secrets
        ]
    return CompiledPool(name, objects, routes.routes, warnings, commands)


def _servers_with_pods(servers: Iterable[ServerConfig]) -> set[str]:
    """The names of the servers that get pods. On-demand servers get pods only if servers with pods depend on them."""
    enabled = {server.name: server for server in servers if not server.disabled}
    running: set[str] = set()
    pending = [server.name for server in enabled.values() if not server.on_demand]
    while pending:
        name = pending.pop()
        if name in enabled and name not in running:
            running.add(name)
            pending += (dependency.name for dependency in enabled[name].depends_on)
    return running


def _waves(needed: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The wave of each server: one more than the waves of its dependencies."""
    waves: dict[str, int] = {}
    for name in TopologicalSorter(needed).static_order():
        waves[name] = max((waves[other] + 1 for other in needed[name]), default=0)
    return waves


def _awaited(names: Iterable[str], servers: Iterable[ServerConfig]) -> tuple[str, ...]:
    by_name = {server.name: server for server in servers}
    return tuple(f"{name}:{by_name[name].address.port}" for name in names if by_name[name].listens)


def _dependency_warnings(
    server: ServerConfig, servers: Sequence[ServerConfig], running: Collection[str], first: Mapping[str, str]
) -> Iterator[Finding]:
    if server.name not in running and server.job and server.every is None and not server.disabled:
        yield Finding(("on_demand",), "the job is not exported: no server with pods depends on it")
    by_name = {server.name: server for server in servers}
    for needed in (by_name[entry.name] for entry in server.depends_on if entry.name in by_name):
        path = ("depends_on",)
        if needed.name not in running:
            yield Finding(path, f"{server.name} does not wait for {needed.name}, which has no pods")
        elif needed.name in first:
            message = f"{server.name} comes after the job {needed.name} in waves of Argo CD alone"
            yield Finding(path, message, first[needed.name])
        elif not needed.listens:
            yield Finding(path, f"{server.name} does not wait for {needed.name}, which has no port")


def _apply_first(name: str, job: Table, directory: str) -> str:
    """How to run a job before the servers that depend on it. `job` is the metadata of the Job."""
    file = shlex.quote(os.path.join(directory, f"server-{name}.yaml"))
    kubectl = f"kubectl -n {job['namespace']}" if "namespace" in job else "kubectl"
    return (
        f"with kubectl or Flux, apply {file if directory else 'its objects'} and what it needs first, then "
        f"`{kubectl} wait --for condition=complete --timeout 10m job/{job['name']}`"
    )


def _index_used(server: ServerConfig) -> Iterator[Finding]:
    """A warning for a program with several workers that reads its worker number."""
    if server.scale.max > 1 and any(
        _INDEX in text for text in (*(server.command or ()), *server.env.values())
    ):
        key = "command" if any(_INDEX in word for word in server.command or ()) else "env"
        yield Finding((key,), f"{_INDEX} is not set in pods of several", "make a server for each number")


def _ready_too_early(server: ServerConfig) -> Iterator[Finding]:
    """A warning for a program without a health probe on a port that poolctl opens."""
    probes = (server.health.startup, server.health.readiness)
    # A probe over TCP passes at once: poolctl has opened the port.
    is_probed = any(probe is not None and not probe.tcp for probe in probes)
    if server.command and server.listens and not is_probed and not opens_own_port(server):
        message = "pods are ready before the program has started, because poolctl opens its port"
        fix = 'write health = "/PATH", so that a release that does not start replaces no pods'
        yield Finding(("command",), message, fix)


def _reason_not_exported(table: str, *, is_routed: bool) -> str:
    if table == _ROUTE:
        return "gateway or ingress_class in [kubernetes] says what routes go through"
    if table == _GATEWAY and is_routed:
        return "addresses, certificates and limits are those of the cluster's gateway"
    return "it is for a pool on one machine"


def _raise_if_problems(config: Configuration, located: Iterable[Located]) -> None:
    problems = list(config.located(located))
    if problems:
        raise Failure(Outcome(errors=list(map(ErrorEntry.of, problems)), exit_code=INVALID_CONFIGURATION))


def _problems(
    servers: Sequence[ServerConfig], pool: SharedSettings, hidden: Sequence[str]
) -> Iterator[Located]:
    if pool.settings.image is None and not all(server.image for server in servers):
        fix = 'write image = "registry.example.com/shop:1.4"'
        yield None, Finding(("kubernetes", "image"), "the pods have no image", fix)
    for finding in settings_problems(pool.settings, hidden):
        yield None, finding
    if not is_label(pool.name):
        fix = "use lower-case letters, digits and hyphens, 63 at most, a letter first"
        yield None, Finding(("pool", "name"), f"no label can have the value {pool.name!r}", fix)
    for server in servers:
        for finding in unsupported_keys(server):
            yield server, finding
        name = f"{pool.name}-{server.name}"
        if is_label(server.name) and is_label(pool.name) and not is_label(name):
            fix = "shorten it or [pool] name, to 63 characters together"
            yield server, Finding(("name",), f"no Deployment can be named {name!r}", fix)
        elif server.job and len(name) > MAX_JOB_NAME_LENGTH:
            kind = "Job" if server.every is None else "CronJob"
            fix = f"shorten it or [pool] name, to {MAX_JOB_NAME_LENGTH} characters together"
            yield server, Finding(("name",), f"no {kind} can be named {name!r}", fix)


def _secrets(server: ServerConfig, pool: SharedSettings, hidden: Sequence[str]) -> Iterator[Finding]:
    """Yield a problem for each key of the server that would publish a secret or a value in `hidden`."""
    (table,) = pod_configuration(server, pool)["server"]
    probes = server.health.as_given()  # the Deployment contains a command's probes
    return secret_keys({**table, **({"health": probes} if probes else {})}, hidden)
