"""Values for another version of poolctl, which may have other keys, and other defaults: as if it had read the files.

A table is written with the keys that were given, and other values with the names of their fields, each with its type as
the source has it. A type whose meaning changes needs a new name.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any

from poolctl.config import Section, Tables
from poolctl.config.model.pool_tables import model_of_table, table_names
from poolctl.config.model.section import extended
from poolctl.feature import features

# Types that include all values of an earlier type.
_WIDER = {"RequestLog": "Truth", "Engine": "Literal['poolctl', 'haproxy']"}


class NotUnderstood(Exception):
    """The values have parts that this version does not have."""


def dumps(value: object) -> bytes:
    """The value for `loads` of any version."""
    content = io.BytesIO()
    _Pickler(content).dump(value)
    return content.getvalue()


def loads(content: bytes) -> Any:
    """The value. Raises NotUnderstood."""
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except NotUnderstood:
        raise
    except Exception as error:
        raise NotUnderstood(f"it cannot be read: {error}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (resolve_name.__module__, resolve_name.__name__):
            return self._named
        return self._named(f"{module}:{name}")

    def _named(self, name: str) -> Any:
        """The class of this name, or the class that had it in earlier versions."""
        try:
            return super().find_class(*name.split(":"))
        except (AttributeError, ModuleNotFoundError):
            tables = filter(None, map(model_of_table, table_names()))
            sections = (feature.load(each) for feature in features() for each in feature.sections.values())
            modules = (vars(sys.modules[model.__module__]) for model in (*tables, *sections))
            known = (each for module in modules for each in module.values())
            found = next((each for each in known if getattr(each, "former_name", "") == name), None)
            if found is None:
                raise
            return found


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        if isinstance(value, type) and (name := getattr(value, "former_name", "")):
            return resolve_name, (name,)
        kind: Any = type(value)
        # A class with __getnewargs_ex__ names its parts itself.
        usual = not kind.__module__.startswith("poolctl.") or hasattr(kind, "__getnewargs_ex__")
        if usual or not (types := _types(kind)):
            return NotImplemented
        if isinstance(value, Section):
            values, given = value.__getstate__()
            kept = {name: values[name] for name in values if name in given or kind.keys_of[name].hidden}
        else:
            kept = {name: getattr(value, name) for name in types}
        return _made, (kind, types, kept)


def _made(kind: Any, types: Mapping[str, str], values: Mapping[str, Any]) -> object:
    kind = extended(kind)
    if kind is Tables:  # in earlier versions a named tuple
        return Tables(**values)
    here = _types(kind)
    for name in values:
        if name not in here:
            raise NotUnderstood(f"there is no {name!r} in {kind.__name__} any more")
        if types[name] not in (here[name], _WIDER.get(here[name])):
            raise NotUnderstood(f"{name!r} in {kind.__name__} has changed")
    if not issubclass(kind, Section):
        return kind(**values)
    made = kind.unchecked(values)
    for name in kind.keys_of.keys() - vars(made).keys():
        raise NotUnderstood(f"{kind.__name__} needs {name!r} now")
    return made


@cache
def _types(kind: Any) -> dict[str, str]:
    """The types of its fields; empty for a class that does not declare them, which is pickled as usual."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        found |= {name: str(type_) for name, type_ in getattr(each, "__annotations__", {}).items()}
    if issubclass(kind, Section):
        return {name: found[name] for name in kind.keys_of}
    return found
