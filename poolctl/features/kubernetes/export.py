"""`poolctl export kubernetes`: writes manifests with which a cluster runs the pool."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import yaml

from poolctl.cli.commands.export import REFERENCE, Files, Wanted, is_made_by, refuse_systemd_options
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.control.answers import ErrorEntry
from poolctl.json_form import Table

from ._compile import compile_pool
from ._environment import IN_ENV, PoolVariables

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")  # where kustomize looks
# All other strings are quoted: Go's YAML parsers recognize more numbers and booleans than PyYAML.
_WORD = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*")
_NOT_TEXT = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


class _Dumper(yaml.SafeDumper):
    """Writes strings that every YAML parser reads as strings, multi-line strings as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Tell PyYAML never to write an alias."""
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if _WORD.fullmatch(text) and text.lower() not in _NOT_TEXT else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def files(place: Place, wanted: Wanted) -> Files:
    """A file for each server and one for all routes, dependencies first; a Kustomization of them for a directory."""
    refuse_systemd_options(wanted)
    ref = find_pool(place)
    variables = PoolVariables.of(ref.files)
    by_reference = wanted.secrets == REFERENCE
    try:
        config = load(ref, env_files=False, in_env=IN_ENV if by_reference else "", several_bind=True)
    except Failure as failure:
        failure.outcome.errors = [_with_local_file(error, variables) for error in failure.outcome.errors]
        raise
    directory = str(wanted.into or "")
    compiled = compile_pool(config, ref.files, by_reference=by_reference, directory=directory)
    made_by = f"Made by `poolctl export kubernetes` for the pool {compiled.name}."
    objects = {f"server-{name}.yaml": manifests for name, manifests in compiled.objects.items()}
    if compiled.routes:
        objects["routes.yaml"] = compiled.routes
    texts = {name: _text(manifests, made_by) for name, manifests in objects.items()}
    warnings = [*compiled.warnings, *variables.warnings(config)]
    note = "the pods need this Secret, if it is not there: "
    if directory:
        paths = (os.path.join(directory, name) for name in _KUSTOMIZATIONS)
        foreign = next(
            (path for path in paths if os.path.lexists(path) and not is_made_by(path, made_by)), None
        )
        if foreign is None:
            texts[_KUSTOMIZATIONS[0]] = _text([_kustomization(texts)], made_by)
        else:
            warnings.append(
                f"{foreign} is not of this export and stays; its resources need {', '.join(texts)}"
            )
    return Files(
        texts=texts,
        made_by=made_by,
        next_commands=f"kubectl apply -k {shlex.quote(directory or 'DIRECTORY')}",
        warnings=warnings,
        notes=[note + command for command in compiled.create_secrets],
        private=[name for name in objects if any(item["kind"] == "Secret" for item in objects[name])],
        is_whole=True,
    )


def _with_local_file(error: ErrorEntry, variables: PoolVariables) -> ErrorEntry:
    """The error with another hint if it is an unset variable that a `.env` sets; a `.env` is not exported."""
    for path, names in variables.local.items():
        for name in names:
            if error.message == f"the environment variable {name} is not set":
                hint = (
                    f"set it for the export, or write --secrets {REFERENCE}, which needs no values in env; "
                    f"{os.path.relpath(path)}, which has it, stays on this machine"
                )
                return replace(error, hint=hint)
    return error


def _kustomization(names: Iterable[str]) -> Table:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(names),
    }


def _text(objects: Iterable[Table], made_by: str) -> str:
    documents: str = yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=float("inf")
    )
    return f"# {made_by}\n{documents}"
