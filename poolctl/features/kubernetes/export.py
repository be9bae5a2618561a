"""`poolctl export kubernetes`: writes manifests with which a cluster runs the pool."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from poolctl.cli.commands.export import Files, Wanted, refuse_systemd_options
from poolctl.cli.offline import load
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.json_form import Table

from ._compile import compile_pool

_MADE_BY = "Made by `poolctl export kubernetes`."


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings in block style, and never uses YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Tell PyYAML never to write an alias."""
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)


def files(place: Place, wanted: Wanted) -> Files:
    """One file per server, in the order to apply them, one for all routes, and a warning for each ignored key."""
    refuse_systemd_options(wanted)
    ref = find_pool(place)
    found = compile_pool(load(ref, env_files=False), ref.files)
    objects_of_files = [*found.objects.items()]
    if found.routes:
        objects_of_files.append(("routes", found.routes))
    digits = len(str(len(objects_of_files)))
    texts = {
        f"{number:0{digits}}-{name}.yaml": _text(objects)
        for number, (name, objects) in enumerate(objects_of_files, 1)
    }
    next_commands = f"kubectl apply -f {shlex.quote(str(wanted.into or 'DIRECTORY'))}"
    return Files(texts=texts, made_by=_MADE_BY, next_commands=next_commands, warnings=found.warnings)


def _text(objects: Iterable[Table]) -> str:
    documents: str = yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, explicit_start=True
    )
    return f"# {_MADE_BY}\n{documents}"
