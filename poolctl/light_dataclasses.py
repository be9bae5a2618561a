"""`dataclass`, `field`, `fields` and `replace` of `dataclasses`, for processes that should start at once.

That module compiles six methods for each class, which takes a millisecond on Python 3.11: all of them were a third of
what the supervisor's imports cost. Here `__init__` is compiled when the first object is made, and the other methods
serve all classes. A class has no fields of its base, no `__post_init__`, and no order.
"""

from __future__ import annotations

from operator import attrgetter

__all__ = ["MISSING", "dataclass", "field", "fields", "replace"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import MISSING, Field, dataclass, field, fields, replace
    from typing import Any
else:
    MISSING = object()

    class Field:
        """A field of a class: its name, what stands for it when it is not given, and what else is said of it."""

        def __init__(self, *, default=MISSING, default_factory=MISSING, metadata=()):
            self.default, self.default_factory, self.metadata = default, default_factory, metadata

    field = Field

    def dataclass(kind=None, /, **options):
        """The class with the methods that follow from its fields; options are `eq`, `frozen` and `slots`."""
        return _complete(kind) if kind else lambda kind: _complete(kind, **options)

    def fields(kind):
        """The fields of a class, or of an object's class."""
        return kind.__light_fields__

    def replace(value, /, **changes):
        """A copy of the object with these fields changed."""
        return type(value)(**{each.name: getattr(value, each.name) for each in fields(value)} | changes)


def _complete(kind: Any, *, eq: bool = True, frozen: bool = False, slots: bool = False) -> Any:
    own = dict(vars(kind))
    found = []
    for name, annotation in kind.__annotations__.items():
        if not annotation.startswith("ClassVar"):
            default = own.get(name, MISSING)
            found.append(default if isinstance(default, Field) else Field(default=default))  # type: ignore[call-arg]
            found[-1].name = name
    names = tuple(each.name for each in found)
    methods: dict[str, object] = {"__repr__": _shown}
    if eq:
        values_of: Callable[[Any], object] = attrgetter(*names) if names else lambda value: ()
        methods["__eq__"] = lambda self, other: (
            values_of(self) == values_of(other) if type(other) is type(self) else NotImplemented
        )
        methods["__hash__"] = (lambda self: hash(values_of(self))) if frozen else None
    if frozen:
        methods["__setattr__"] = methods["__delattr__"] = _refuse
    if frozen and slots:
        # Copied and unpickled without an assignment.
        methods["__reduce__"] = lambda self: (type(self), tuple(getattr(self, name) for name in names))
    own = {
        **methods,
        **{name: own[name] for name in own.keys() - names - {"__dict__", "__weakref__"}},
        **{each.name: each.default for each in found if each.default is not MISSING and not slots},
        "__light_fields__": tuple(found),
        "__match_args__": names,
    }
    if slots:
        own["__slots__"] = names
    made = type(kind)(kind.__name__, kind.__bases__, own)
    made.__init__ = _first(made, frozen)
    return made


def _first(kind: Any, frozen: bool) -> Callable[..., None]:
    def __init__(self: object, *given: object, **named: object) -> None:
        kind.__init__ = _initializer(kind.__light_fields__, frozen)
        kind.__init__(self, *given, **named)

    return __init__


def _initializer(found: tuple[Field[Any], ...], frozen: bool) -> Callable[..., None]:
    names: dict[str, Any] = {"MISSING": MISSING, "put": object.__setattr__}
    parameters, lines = ["self"], ["pass"]
    for each in found:
        name = value = each.name
        if each.default_factory is not MISSING:
            names[f"make_{name}"] = each.default_factory
            parameters.append(f"{name}=MISSING")
            value = f"make_{name}() if {name} is MISSING else {name}"
        elif each.default is not MISSING:
            names[f"default_{name}"] = each.default
            parameters.append(f"{name}=default_{name}")
        else:
            parameters.append(name)
        lines.append(f"put(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines), names)
    return names["__init__"]  # type: ignore[no-any-return]


def _shown(self: object) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self))  # type: ignore[arg-type]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(self: object, name: str, value: object = None) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: {name}")
