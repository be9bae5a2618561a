"""Converts dataclasses to JSON and back: messages between processes, and files that another version may read.

A field whose default is None is left out while it is None. So that versions understand each other, a field missing from
a document gets its default, or without one an empty value ("", 0, an empty tuple), and unknown members are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints

if TYPE_CHECKING:
    Table = dict[str, Any]  # plain JSON: a configuration, an event
else:
    Table = dict

Record = TypeVar("Record")
# A type's empty value, valid JSON types, and the functions that convert from and to JSON.
_TypeCodec = tuple[object, tuple[type, ...], Callable[[Any], object] | None, Callable[[Any], object] | None]


class _FieldCodec(NamedTuple):
    """How a field is converted: `missing` is its value if a document lacks it, `types` are the valid types in JSON.

    `read` converts from JSON and `write` to JSON; None means no conversion. If `is_optional`, a field that is None is
    left out of documents.
    """

    name: str
    missing: object
    types: tuple[type, ...]
    read: Callable[[Any], object] | None
    write: Callable[[Any], object] | None
    is_optional: bool


def to_json(record: object, *names: str) -> Table:
    """Return the record as a JSON document; if `names` are passed, the document has only the fields of these names.

    If the record's class has a method `finish_json`, the method is called with the document and may change it.
    """
    table: Table = {}
    kind: Any = type(record)
    for codec in _field_codecs(kind):
        if names and codec.name not in names:
            continue
        value = getattr(record, codec.name)
        if value is not None:
            table[codec.name] = value if codec.write is None else codec.write(value)
        elif not codec.is_optional:
            table[codec.name] = None
    if finish := getattr(record, "finish_json", None):
        finish(table)
    return table


def from_json(kind: type[Record], table: Mapping[str, object]) -> Record:
    """A record of this class with the values of a JSON document. Raises ValueError for a value of the wrong type."""
    values: Table = {}
    for codec in _field_codecs(kind):  # type: ignore[arg-type]
        value = table.get(codec.name)
        if value is None:
            value = codec.missing
        elif not isinstance(value, codec.types):
            raise ValueError(f"{codec.name} is {value!r}, which is of another type")
        elif codec.read is not None:
            value = codec.read(value)
        values[codec.name] = value
    return kind(**values)


def field_names(kind: Any) -> tuple[str, ...]:
    """The names of a dataclass's fields, first the fields of its base."""
    return tuple(field.name for field in fields(kind))


@cache
def _field_codecs(kind: Any) -> tuple[_FieldCodec, ...]:
    # Cached, because a worker removes the modules that define the types from sys.modules.
    types = get_type_hints(kind)
    codecs = []
    for field in fields(kind):
        empty, accepted, read, write = _type_codec(types[field.name])
        missing = empty if field.default is MISSING else field.default
        codecs.append(_FieldCodec(field.name, missing, accepted, read, write, field.default is None))
    return tuple(codecs)


def _type_codec(kind: Any) -> _TypeCodec:
    if isinstance(kind, UnionType):
        (only,) = (member for member in kind.__args__ if member is not NoneType)
        _, accepted, read, write = _type_codec(only)
        return None, accepted, read, write
    origin = getattr(kind, "__origin__", kind)
    if origin is tuple:
        return _tuple_codec(kind.__args__[0])
    if origin is dict:
        return {}, (dict,), None, None
    if kind is float:
        return 0.0, (int, float), None, None
    if kind in (str, int, bool):
        return kind(), (kind,), None, None
    return from_json(kind, {}), (dict,), lambda table: from_json(kind, table), to_json


def _tuple_codec(kind: Any) -> _TypeCodec:
    _, accepted, read, write = _type_codec(kind)
    if isinstance(kind, UnionType):
        accepted = (*accepted, NoneType)

    def elements(items: list[object]) -> tuple[object, ...]:
        if not all(isinstance(item, accepted) for item in items):
            raise ValueError(f"{items!r} has elements of another type")
        return tuple(items if read is None else map(read, items))

    return (), (list,), elements, list if write is None else lambda values: [write(value) for value in values]
