"""Compiles each server of a pool into Kubernetes objects, or reports the keys that make this impossible."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from graphlib import TopologicalSorter
from typing import NamedTuple

from poolctl.cli.outcome import Failure, Outcome
from poolctl.config import Configuration, Finding, ServerConfig, masked, referenced_variables, values_of
from poolctl.config.model.pool_tables import Located
from poolctl.control.answers import ErrorEntry
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.json_form import Table
from poolctl.supervisor.active_configuration import default_name

from ._keys import is_label, left_out, refused
from ._objects import KubernetesPool, moved_to_pods, objects_of, pod_configuration
from .table import Kubernetes

_LONGEST_NAME_OF_CRON_JOB = 52  # the names of its Jobs are longer


class CompiledPool(NamedTuple):
    """A pool compiled for a cluster: servers and objects by server name, dependencies first.

    `warnings` name the keys that are ignored.
    """

    pool: KubernetesPool
    servers: dict[str, ServerConfig]  # with their addresses on the cluster
    objects: dict[str, list[Table]]
    warnings: list[str]


def settings_of(config: Configuration) -> Kubernetes:
    """The table [kubernetes]. Raises Failure (5) if the files have none."""
    settings = config.tables.get(Kubernetes)
    if settings is None:
        hint = 'add [kubernetes] with image = "registry.example.com/shop:1.4"'
        raise Failure(Outcome.failed(INVALID_CONFIGURATION, "the pool has no table [kubernetes]", hint))
    return settings


def pool_name(config: Configuration, files: Sequence[str]) -> str:
    """The pool's name, which is a label of all its objects."""
    return config.settings.name or default_name(files[0])


def compiled(config: Configuration, files: Sequence[str]) -> CompiledPool:
    """Compile the pool. Raises Failure (5) with all unsupported keys; ServerError for a bad `env_file`."""
    settings = settings_of(config)
    handlers = next((each.handlers for each in config if each.handlers), "")
    pool = KubernetesPool(pool_name(config, files), settings, handlers)
    servers = _in_order(config)
    _refuse(config, _problems(servers, pool))
    moved = moved_to_pods(servers)
    hidden = _values(files)
    _refuse(config, ((each, finding) for each in moved for finding in _secrets(each, pool, hidden)))
    places = {each.name: f"{each.name}:{each.address.port}" for each in moved if each.listens}
    warnings = [str(each) for each in config.located((each, f) for each in servers for f in left_out(each))]
    warnings += [
        f"{each.name} does not wait for {needed.name}, which has no port"
        for each in moved
        for needed in each.depends_on
        if needed.name not in places
    ]
    warnings += [
        f"[{name}] is not exported: it is for a pool on one machine"
        for name in config.tables.by_name()
        if name != Kubernetes.table_name
    ]
    return CompiledPool(
        pool,
        {each.name: each for each in moved},
        {each.name: list(objects_of(each, pool, places)) for each in moved},
        warnings,
    )


def _refuse(config: Configuration, found: Iterable[Located]) -> None:
    problems = list(config.located(found))
    if problems:
        raise Failure(Outcome(errors=list(map(ErrorEntry.of, problems)), exit_code=INVALID_CONFIGURATION))


def _in_order(config: Configuration) -> list[ServerConfig]:
    """The servers, dependencies first."""
    servers = {each.name: each for each in config}
    needed = {name: [each.name for each in server.depends_on] for name, server in servers.items()}
    return [servers[name] for name in TopologicalSorter(needed).static_order() if name in servers]


def _problems(servers: Sequence[ServerConfig], pool: KubernetesPool) -> Iterator[Located]:
    if pool.settings.image is None and not all(server.image for server in servers):
        fix = 'write image = "registry.example.com/shop:1.4"'
        yield None, Finding(("kubernetes", "image"), "the pods have no image", fix)
    for server in servers:
        for finding in refused(server):
            yield server, finding
        name = f"{pool.name}-{server.name}"
        if is_label(server.name) and not is_label(name):
            fix = "use lower-case letters, digits and hyphens in [pool] name, 63 characters together"
            yield server, Finding(("name",), f"no Deployment can be named {name!r}", fix)
        elif server.every is not None and len(name) > _LONGEST_NAME_OF_CRON_JOB:
            fix = f"shorten it or [pool] name, to {_LONGEST_NAME_OF_CRON_JOB} characters together"
            yield server, Finding(("name",), f"no CronJob can be named {name!r}", fix)


def _secrets(server: ServerConfig, pool: KubernetesPool, hidden: Sequence[str]) -> Iterator[Finding]:
    """The keys of the server whose values are secrets and would end up in its ConfigMap."""
    (table,) = pod_configuration(server, pool)["server"]
    for key, value in table.items():
        if masked({key: value}, hidden=hidden) != masked({key: value}) or masked({key: value}) != {
            key: value
        }:
            fix = "give it to the server in env, or write the value itself if everybody may read it"
            yield Finding((key,), "a value of it is a secret, or comes from the environment", fix)


def _values(files: Iterable[str]) -> list[str]:
    """The values of the environment variables that the files use."""
    names: set[str] = set()
    for file in files:
        with open(file, encoding="utf-8", errors="replace") as source:
            names.update(referenced_variables(source.read()))
    return values_of(names, os.environ)
