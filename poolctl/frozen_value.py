"""Frozen values with typed fields, and their form in JSON: dataclasses for commands that should start at once.

Like frozen dataclasses with slots: that module, with `json`, would cost each command two milliseconds and a fifth
of its time.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from inspect import Signature
    from typing import Any, Self, dataclass_transform

    Table = dict[str, Any]  # plain JSON: a configuration, an event
    Form = Callable[..., object]
    Types = type | tuple[type, ...]

    # A field: its name, its setter, what stands for a missing value, the types that JSON may have there, what makes a
    # value of one, what makes JSON of a value (None: as it is), and whether it is left out while it is None.
    FieldForm = tuple[str, Callable[[object, object], None], object, Types, Form | None, Form | None, bool]
else:
    Table = dict

    def dataclass_transform(**_):
        """Makes type checkers take a class's fields for parameters of its constructor."""
        return lambda kind: kind


REQUIRED = object()
_NOTHING: dict[str, object] = {"str": "", "int": 0, "float": 0.0, "bool": False, "Table": {}}
_PLAIN: dict[str, Types] = {"str": str, "int": int, "float": (int, float), "bool": bool, "Table": dict}


@dataclass_transform(frozen_default=True, kw_only_default=True)
class ValueType(type):
    """Makes slots of the annotations of a class. The fields of its base come before its own."""

    defaults: dict[str, object]
    annotations: dict[str, tuple[str, dict[str, Any]]]  # each with the names in which it is to be understood
    forms: tuple[FieldForm, ...] | None
    values_of: Callable[[Any], object] | None  # what is compared: a tuple, or of a single field its value

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: Table) -> ValueType:
        base = bases[0] if bases else None
        annotations = dict(base.annotations) if isinstance(base, ValueType) else {}
        defaults = dict(base.defaults) if isinstance(base, ValueType) else {}
        own = {
            field: annotation
            for field, annotation in namespace.get("__annotations__", {}).items()
            if not annotation.startswith("ClassVar")
        }
        namespace["__slots__"] = tuple(field for field in own if field not in annotations)
        # Kept, because a worker takes its modules out of sys.modules.
        names = vars(sys.modules[namespace["__module__"]]) if own else {}
        for field, annotation in own.items():
            annotations[field] = annotation, names
            defaults[field] = namespace.pop(field, REQUIRED)
        made = super().__new__(cls, name, bases, namespace)
        made.annotations, made.defaults = annotations, defaults
        made.forms = made.values_of = None
        return made


class FieldSignature:
    """The `__signature__` of a class whose constructor takes any keyword: its fields, for help() and inspect.

    `fields_of` gives each field's name, annotation, and default or REQUIRED.
    """

    def __init__(self, fields_of: Callable[[Any], Iterable[tuple[str, object, object]]]) -> None:
        self._fields_of = fields_of

    def __get__(self, instance: object, owner: type) -> Signature:
        from inspect import Parameter, Signature  # no command asks

        return Signature(
            [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if default is REQUIRED else default,
                    annotation=annotation,
                )
                for name, annotation, default in self._fields_of(owner)
            ]
        )


def _described(kind: ValueType) -> list[tuple[str, object, object]]:
    return [(name, annotation, kind.defaults[name]) for name, (annotation, _) in kind.annotations.items()]


class Value(metaclass=ValueType):
    """The base of values: made of keywords, and equal when their fields are.

    In JSON a field whose default is None is left out while it is None. A field that a document lacks gets its default,
    or without one an empty value ("", 0, an empty tuple); other members of the document are ignored.
    """

    __signature__ = FieldSignature(_described)

    def __init__(self, **given: object) -> None:
        kind = type(self)
        fields = {**kind.defaults, **given}
        if len(fields) > len(kind.defaults):
            raise TypeError(f"{kind.__name__} has no {', '.join(given.keys() - kind.defaults.keys())}")
        for name, value in fields.items():
            if value is REQUIRED:
                raise TypeError(f"{kind.__name__} needs {name}")
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        kind = type(self)
        if type(other) is not kind:
            return False
        values_of = kind.values_of or _values_of(kind)
        return values_of(self) == values_of(other)

    def __hash__(self) -> int:
        kind = type(self)
        return hash((kind.values_of or _values_of(kind))(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in _fields(self).items())
        return f"{type(self).__name__}({shown})"

    def but(self, **changes: object) -> Self:
        """The same value, with these fields changed."""
        return type(self)(**{**_fields(self), **changes})

    @classmethod
    def extending(cls, base: Value, /, **more: object) -> Self:
        """A value with the fields of one of a base class, and with these."""
        return cls(**{**_fields(base), **more})

    def to_json(self, *names: str) -> Table:
        """The value as JSON has it; with names, these fields of it."""
        table: Table = {}
        for name, _, _, _, _, write, optional in type(self).forms or _forms(type(self)):
            if names and name not in names:
                continue
            value = getattr(self, name)
            if value is None:
                if not optional:
                    table[name] = None
            else:
                table[name] = value if write is None else write(value)
        return table

    @classmethod
    def from_json(cls, table: Mapping[str, object]) -> Self:
        """The value that a document holds. Raises ValueError for a field of another type."""
        made = cls.__new__(cls)
        for name, put, missing, accepted, make, _, _ in cls.forms or _forms(cls):
            value = table.get(name)
            if value is None:
                value = missing
            elif not isinstance(value, accepted):
                raise ValueError(f"{name} is {value!r}, which is of another type")
            elif make is not None:
                value = make(value)
            put(made, value)
        return made


def _fields(value: Value) -> dict[str, object]:
    """Its fields by name, as they are."""
    return {name: getattr(value, name) for name in type(value).annotations}


def _values_of(kind: ValueType) -> Callable[[Any], object]:
    """Made when the first value of the class is compared: comparing tables of fields takes four times as long."""
    from operator import attrgetter  # most commands compare no values

    kind.values_of = attrgetter(*kind.annotations) if kind.annotations else lambda value: ()
    return kind.values_of


def _forms(kind: ValueType) -> tuple[FieldForm, ...]:
    """How each field is read and written; made when the first value of the class is."""
    found: list[FieldForm] = []
    for name, (annotation, names) in kind.annotations.items():
        default = kind.defaults[name]
        put = next(vars(each)[name] for each in kind.__mro__ if name in vars(each)).__set__
        word = annotation.removesuffix(" | None")
        missing, accepted, make, write = _form(word, names)
        if default is not REQUIRED:
            missing = default
        elif word != annotation:
            missing = None
        found.append((name, put, missing, accepted, make, write, default is None))
    kind.forms = tuple(found)
    return kind.forms


def _form(word: str, names: Table) -> tuple[object, Types, Form | None, Form | None]:
    """Of a type: what stands for a missing value, the types in JSON, what makes a value of JSON, and the reverse."""
    if word.startswith("tuple["):
        element = word.removeprefix("tuple[").removesuffix(", ...]")
        _, accepted, make, write = _form(element.removesuffix(" | None"), names)
        if element.endswith(" | None"):
            accepted = (accepted, type(None)) if isinstance(accepted, type) else (*accepted, type(None))

        def elements(given: list[object]) -> tuple[object, ...]:
            if not all(isinstance(each, accepted) for each in given):
                raise ValueError(f"{given!r} has elements of another type")
            return tuple(given if make is None else map(make, given))

        return (), list, elements, list if write is None else lambda values: list(map(write, values))
    if word.startswith("dict["):
        return {}, dict, None, None
    if word in _PLAIN:
        return _NOTHING[word], _PLAIN[word], None, None
    kind: type[Value] = names[word]
    return kind.from_json({}), dict, kind.from_json, kind.to_json
