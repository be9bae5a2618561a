"""Compiles each server of a pool into Kubernetes objects, or reports the keys that make this impossible."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple

from poolctl.cli.outcome import Failure, Outcome
from poolctl.config import (
    Configuration,
    Finding,
    ServerConfig,
    values_to_mask,
    variables_referenced_without_default,
)
from poolctl.config.model.pool_tables import Located
from poolctl.control.answers import ErrorEntry
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.json_form import Table
from poolctl.supervisor.active_configuration import default_name

from ._keys import ignored_keys, is_label, secret_keys, settings_problems, unsupported_keys
from ._objects import SharedSettings, objects_of, pod_configuration, with_service_addresses
from ._routes import CompiledRoutes, compile_routes
from .table import Kubernetes

_LONGEST_NAME_OF_CRON_JOB = 52  # the names of its Jobs are longer
_GATEWAY, _ROUTE = "gateway", "route"  # names of tables


class CompiledPool(NamedTuple):
    """A pool compiled for a cluster: objects by server name, dependencies first, and the objects of its routes.

    `warnings` name the keys that are ignored, and the routes and tables that are not exported.
    """

    objects: dict[str, list[Table]]
    routes: list[Table]
    warnings: list[str]


def compile_pool(config: Configuration, files: Sequence[str]) -> CompiledPool:
    """Compile the pool. Raises Failure (5) with all unsupported keys; ServerError for a bad `env_file`."""
    settings = config.tables.get(Kubernetes)
    if settings is None:
        hint = 'add [kubernetes] with image = "registry.example.com/shop:1.4"'
        raise Failure(Outcome.failed(INVALID_CONFIGURATION, "the pool has no table [kubernetes]", hint))
    handlers = next((each.handlers for each in config if each.handlers), "")
    pool = SharedSettings(config.settings.name or default_name(files[0]), settings, handlers)
    servers = _in_order(config)
    _raise_if_problems(config, _problems(servers, pool))
    moved = with_service_addresses(servers)
    hidden = _environment_values(files)
    _raise_if_problems(
        config, ((each, finding) for each in moved for finding in _secrets(each, pool, hidden))
    )
    routes = CompiledRoutes([], [], [], [])
    is_routed = settings.gateway is not None or settings.ingress_class is not None
    if is_routed:
        routes = compile_routes(servers, {each.name: each for each in moved}, config.tables, pool, hidden)
        _raise_if_problems(config, routes.problems)
    places = {each.name: f"{each.name}:{each.address.port}" for each in moved if each.listens}
    found = (
        (each, finding)
        for each in servers
        for finding in ignored_keys(each, config.origin_of(each) or (), is_routed=is_routed)
    )
    warnings = [str(each) for each in config.located([*found, *routes.ignored])] + routes.warnings
    warnings += [
        f"{each.name} does not wait for {needed.name}, which has no port"
        for each in moved
        for needed in each.depends_on
        if needed.name not in places
    ]
    warnings += [
        f"[{name}] is not exported: {_reason_not_exported(name, is_routed=is_routed)}"
        for name in config.tables.by_name()
        if name != Kubernetes.table_name and not (name == _ROUTE and is_routed)
    ]
    objects = {each.name: list(objects_of(each, pool, places)) for each in moved}
    return CompiledPool(objects, routes.routes, warnings)


def _reason_not_exported(table: str, *, is_routed: bool) -> str:
    if table == _ROUTE:
        return "gateway or ingress_class in [kubernetes] says what routes go through"
    if table == _GATEWAY and is_routed:
        return "addresses, certificates and limits are those of the cluster's gateway"
    return "it is for a pool on one machine"


def _raise_if_problems(config: Configuration, found: Iterable[Located]) -> None:
    problems = list(config.located(found))
    if problems:
        raise Failure(Outcome(errors=list(map(ErrorEntry.of, problems)), exit_code=INVALID_CONFIGURATION))


def _in_order(config: Configuration) -> list[ServerConfig]:
    """The servers in the order to start them: first those on which the longest chain of other servers depends.

    Servers without dependencies or dependents come last, so that their pods do not delay the others.
    """
    servers = {each.name: each for each in config}
    needed = {
        name: [each.name for each in server.depends_on if each.name in servers]
        for name, server in servers.items()
    }
    waiting = dict.fromkeys(servers, 0)  # by server: the length of the longest chain that waits for it
    for name in reversed([*TopologicalSorter(needed).static_order()]):
        for on in needed[name]:
            waiting[on] = max(waiting[on], waiting[name] + 1)
    return sorted(servers.values(), key=lambda each: (-waiting[each.name], not needed[each.name]))


def _problems(servers: Sequence[ServerConfig], pool: SharedSettings) -> Iterator[Located]:
    if pool.settings.image is None and not all(server.image for server in servers):
        fix = 'write image = "registry.example.com/shop:1.4"'
        yield None, Finding(("kubernetes", "image"), "the pods have no image", fix)
    for finding in settings_problems(pool.settings):
        yield None, finding
    for server in servers:
        for finding in unsupported_keys(server):
            yield server, finding
        name = f"{pool.name}-{server.name}"
        if is_label(server.name) and not is_label(name):
            fix = "use lower-case letters, digits and hyphens in [pool] name, 63 characters together"
            yield server, Finding(("name",), f"no Deployment can be named {name!r}", fix)
        elif server.every is not None and len(name) > _LONGEST_NAME_OF_CRON_JOB:
            fix = f"shorten it or [pool] name, to {_LONGEST_NAME_OF_CRON_JOB} characters together"
            yield server, Finding(("name",), f"no CronJob can be named {name!r}", fix)


def _secrets(server: ServerConfig, pool: SharedSettings, hidden: Sequence[str]) -> Iterator[Finding]:
    """Yield a problem for each key of the server that would put a secret, or a value in `hidden`, into a ConfigMap."""
    (table,) = pod_configuration(server, pool)["server"]
    return secret_keys(table, hidden)


def _environment_values(files: Iterable[str]) -> list[str]:
    """The values of the environment variables that the files use."""
    return values_to_mask(variables_referenced_without_default(files), os.environ)
