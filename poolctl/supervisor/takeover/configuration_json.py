"""The form in which a supervisor leaves the configuration in force to a successor of this version or a later one.

It is JSON with a version. A table has the keys that were given, under their names in files, and the values that files
cannot give: a version with other keys or other defaults understands it as if it had read the files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import TypeVar

from poolctl.address import Address
from poolctl.config import Finding, Section, ServerConfig, Surroundings, Tables
from poolctl.config.files.file_marks import Mark
from poolctl.config.model.pool_tables import model_of_table
from poolctl.config.model.section import sections_of, validated
from poolctl.config.values.plain import FrozenDict, Interpolated
from poolctl.config.values.problems import Path, Tree
from poolctl.json_form import Table

from .pickled_configuration import unpickled
from .stored_configuration import NotUnderstood, StoredConfiguration

# Raised when the meaning or the unit of a key changes: new keys, and other defaults, need no other version.
VERSION = 1

Kind = TypeVar("Kind", bound=Section)


def encoded(configuration: StoredConfiguration) -> bytes:
    """The configuration for `decoded` of this version or a later one."""
    defaults = configuration.surroundings.defaults
    marks = configuration.marks
    document = {
        "version": VERSION,
        "name": configuration.name,
        "port_range": configuration.port_range,
        "servers": configuration.servers,
        "placed": configuration.placed,
        "missing": configuration.missing,
        "defaults": {
            "values": defaults,
            # Texts that may stand for numbers and truth values, because they come from the environment.
            "from_environment": list(_paths_from_environment(defaults)),
            "base_dir": configuration.surroundings.base_dir,
            "handlers": configuration.surroundings.handlers,
        },
        "tables": configuration.tables.by_name(),
        "environment": configuration.environment,
        "environments": configuration.environments,
        "files": None if marks is None else {path: mark._asdict() for path, mark in marks.items()},
    }
    return json.dumps(document, default=_written).encode()


def decoded(content: bytes, *, validate: bool = False) -> StoredConfiguration:
    """The configuration; `validate` also checks every value, which needs pydantic. Raises NotUnderstood."""
    try:
        # Pickled values are read like the JSON that their supervisor would have left.
        document = json.loads(content if content.startswith(b"{") else encoded(unpickled(content)))
        return _configuration(document, _Reader(validate))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NotUnderstood(f"it cannot be read: {error!r}") from error


def _configuration(document: Table, reader: _Reader) -> StoredConfiguration:
    if document["version"] != VERSION:
        raise NotUnderstood(f"version {document['version']} of its form is not known")
    defaults, marks = document["defaults"], document["files"]
    from_environment = {tuple(path) for path in defaults["from_environment"]}
    return StoredConfiguration(
        document["name"],
        [reader.server(each) for each in document["servers"]],
        {name: reader.server(each) for name, each in document["placed"].items()},
        document["missing"],
        Surroundings(
            _defaults(defaults["values"], from_environment), defaults["base_dir"], defaults["handlers"]
        ),
        tuple(document["port_range"]),
        document["environment"],
        document["environments"],
        Tables(**{name: reader.table_of_files(name, each) for name, each in document["tables"].items()}),
        None if marks is None else {path: _mark(each) for path, each in marks.items()},
    )


def _written(section: Tree) -> Table:
    """A table: the keys that were given, and the values that files cannot give."""
    if not isinstance(section, Section):
        raise TypeError(f"{type(section).__name__} has no form in JSON")
    values, given = section.__getstate__()
    hidden = {name: key.default for name, key in section.keys_of.items() if key.hidden}
    found = {
        name: value
        for name, value in values.items()
        if (value != hidden[name] if name in hidden else name in given)
    }
    if isinstance(address := found.get("address"), Address):
        names = ("kind", "host", "port", "path", "name", "dual")
        found["address"] = {name: getattr(address, name) for name in names}
    return found


class _Reader:
    """Makes tables of their JSON; if it is to `validate`, the values of another version are checked."""

    def __init__(self, validate: bool) -> None:
        self._validate = validate

    def server(self, document: Table) -> ServerConfig:
        address = dict(document["address"])
        return self._table(ServerConfig, {**document, "address": Address(address.pop("kind"), **address)})

    def table_of_files(self, name: str, document: Tree) -> Tree:
        """A table, or a list of tables, of this name in files."""
        model = model_of_table(name)
        if model is None:
            raise NotUnderstood(f"there is no [{name}] any more")
        return self._value(model, document)

    def _table(self, kind: type[Kind], document: Table) -> Kind:
        sections = sections_of(kind)
        values = {name: self._value(sections.get(name), value) for name, value in document.items()}
        for name in values.keys() - kind.keys_of.keys():
            raise NotUnderstood(f"there is no {name!r} in {kind.__name__} any more")
        made = kind.unchecked(values)
        for name in kind.keys_of.keys() - vars(made).keys():
            raise NotUnderstood(f"{kind.__name__} needs {name!r} now")
        findings: list[Finding] = []
        if self._validate and validated(kind, values, findings, forget=True) is None:
            found = (
                f"{'.'.join(map(str, each.path))!r} in {kind.__name__}: {each.message}" for each in findings
            )
            raise NotUnderstood("; ".join(found))
        return made

    def _value(self, kind: type[Section] | None, value: Tree) -> Tree:
        if isinstance(value, list):
            return tuple(self._value(kind, each) for each in value)
        if isinstance(value, dict):
            return FrozenDict(value) if kind is None else self._table(kind, value)
        return value


def _mark(document: Table) -> Mark:
    stamp = document["stamp"]
    return Mark(stamp and tuple(stamp), document["digest"])


def _paths_from_environment(tree: Tree, path: Path = ()) -> Iterator[Path]:
    if type(tree) is Interpolated:
        yield path
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _paths_from_environment(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _paths_from_environment(value, (*path, index))


def _defaults(tree: Tree, from_environment: Collection[Path], path: Path = ()) -> Tree:
    """The defaults, as tables of files have them: lists as tuples."""
    if isinstance(tree, dict):
        return {key: _defaults(value, from_environment, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return tuple(_defaults(value, from_environment, (*path, index)) for index, value in enumerate(tree))
    return Interpolated(tree) if path in from_environment else tree
