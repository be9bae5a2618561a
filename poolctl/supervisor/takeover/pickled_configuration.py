"""The configuration in force as supervisors of protocols 1 and 2 leave it: pickled, its classes by their modules.

For a successor of another version they pickle the keys that were given, each table with its class; for one of their
own version, every value. A class is found by its name alone where its module has changed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any

from poolctl.address import Address
from poolctl.config import Section, ServerConfig, Surroundings, Tables
from poolctl.config.files.file_marks import Mark
from poolctl.config.model.pool_tables import model_of_table, table_names
from poolctl.config.model.section import sections_of
from poolctl.config.values.plain import FrozenDict, Interpolated

from .stored_configuration import NotUnderstood, StoredConfiguration

_PLAIN = (Address, FrozenDict, Interpolated, Mark, StoredConfiguration, Surroundings, Tables)


def unpickled(content: bytes) -> StoredConfiguration:
    """The configuration as it was pickled, its values possibly those of another version. Raises NotUnderstood."""
    try:
        found: Any = _Unpickler(io.BytesIO(content)).load()
        if isinstance(found, tuple):
            _, found = found  # the version that wrote it
        if isinstance(found, bytes):
            return unpickled(found)
    except NotUnderstood:
        raise
    except Exception as error:
        raise NotUnderstood(f"it cannot be read: {error!r}") from error
    if not isinstance(found, StoredConfiguration):
        raise NotUnderstood(f"it is a {type(found).__name__}")
    return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (resolve_name.__module__, resolve_name.__name__):
            return lambda path: self.find_class(*path.split(":"))
        if name == "_made":
            return _made
        try:
            return super().find_class(module, name)
        except (AttributeError, ModuleNotFoundError):
            if name not in _classes():
                raise
            return _classes()[name]


def _made(kind: Any, types: object, values: dict[str, Any]) -> object:
    """The value of the keys that were given, or of the fields."""
    return kind.from_values(values, set(values)) if issubclass(kind, Section) else kind(**values)


@cache
def _classes() -> Mapping[str, type]:
    """The classes of a configuration by their names."""
    tables: list[type[Section] | None] = [ServerConfig, *map(model_of_table, table_names())]
    sections = (each for table in tables if table is not None for each in _with_sections(table))
    return {each.__name__: each for each in (*_PLAIN, *sections)}


def _with_sections(kind: type[Section]) -> Iterator[type[Section]]:
    yield kind
    for each in sections_of(kind).values():
        yield from _with_sections(each)
