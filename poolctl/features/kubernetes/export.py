"""`poolctl export kubernetes`: files with which a cluster runs the pool."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from graphlib import TopologicalSorter
from typing import Any

import yaml

from poolctl.cli.command_line import CommandRequest
from poolctl.cli.commands.export import Files, without_options_of_systemd
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import find_pool
from poolctl.config import Configuration, Finding, ServerConfig, masked, referenced_variables, values_of
from poolctl.config.model.pool_tables import Located
from poolctl.control.answers import ErrorEntry
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.json_form import Table
from poolctl.supervisor.active_configuration import default_name

from ._keys import is_label, left_out, refused
from ._objects import KubernetesPool, moved_to_pods, objects_of, pod_configuration
from .table import Kubernetes

_MADE_BY = "Made by `poolctl export kubernetes`."


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and repeats values rather than to refer to them."""

    def ignore_aliases(self, data: Any) -> bool:
        """See yaml.SafeDumper."""
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def files(request: CommandRequest) -> Files:
    """A file for each server, in the order in which they are applied, and a warning for each key that is left out."""
    without_options_of_systemd(request)
    ref = find_pool(request)
    config = load(ref)
    settings = config.tables.get(Kubernetes)
    if settings is None:
        hint = 'add [kubernetes] with image = "registry.example.com/shop:1.4"'
        raise Failure(Outcome.failed(INVALID_CONFIGURATION, "the pool has no table [kubernetes]", hint))
    pool = KubernetesPool(
        config.settings.name or default_name(ref.files[0]),
        settings,
        next((each.handlers for each in config if each.handlers), ""),
    )
    servers = _in_order(config)
    problems = list(config.located(_problems(servers, pool)))
    if problems:
        raise Failure(Outcome(errors=list(map(ErrorEntry.of, problems)), exit_code=INVALID_CONFIGURATION))
    moved = moved_to_pods(servers)
    readable = [(each, finding) for each in moved for finding in _secrets(each, pool, _values(ref.files))]
    if readable:
        problems = config.located(readable)
        raise Failure(Outcome(errors=list(map(ErrorEntry.of, problems)), exit_code=INVALID_CONFIGURATION))
    places = {each.name: f"{each.name}:{each.address.port}" for each in moved if each.listens}
    digits = len(str(len(moved)))
    texts = {
        f"{number:0{digits}}-{server.name}.yaml": _text(objects_of(server, pool, places))
        for number, server in enumerate(moved, 1)
    }
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
    next_commands = f"kubectl apply -f {request.get('into') or 'DIRECTORY'}"
    return Files(texts=texts, made_by=_MADE_BY, next_commands=next_commands, warnings=warnings)


def _in_order(config: Configuration) -> list[ServerConfig]:
    """The servers, each after those that it depends on."""
    servers = {each.name: each for each in config}
    needed = {name: [each.name for each in server.depends_on] for name, server in servers.items()}
    return [servers[name] for name in TopologicalSorter(needed).static_order() if name in servers]


def _problems(servers: Iterable[ServerConfig], pool: KubernetesPool) -> Iterator[Located]:
    if pool.settings.image is None:
        fix = 'write image = "registry.example.com/shop:1.4"'
        yield None, Finding(("kubernetes", "image"), "the pods have no image", fix)
    for server in servers:
        for finding in refused(server):
            yield server, finding
        name = f"{pool.name}-{server.name}"
        if is_label(server.name) and not is_label(name):
            fix = "use lower-case letters, digits and hyphens in [pool] name, 63 characters together"
            yield server, Finding(("name",), f"no Deployment can be named {name!r}", fix)


def _secrets(server: ServerConfig, pool: KubernetesPool, hidden: Sequence[str]) -> Iterator[Finding]:
    """The keys of the server whose values would be secrets in its ConfigMap."""
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


def _text(objects: Iterable[Table]) -> str:
    documents: str = yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, explicit_start=True
    )
    return f"# {_MADE_BY}\n{documents}"
