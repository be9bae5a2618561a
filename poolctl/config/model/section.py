"""The base classes of a configuration's tables: frozen pydantic models; a constructor names every problem."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError, model_validator

from poolctl.config.values.messages import findings_of
from poolctl.config.values.problems import Finding, KeyPath, Tree, problem_of, reset_suggestions
from poolctl.config.values.value_types import Flat, OrSingle, Relative, Short
from poolctl.errors import PoolValidateError
from poolctl.feature import features

Kind = TypeVar("Kind", bound="Section")

# True while `validated` collects the problems of a table: nested tables then do not raise.
_is_part: ContextVar[bool] = ContextVar("_is_part", default=False)
is_within_validation = _is_part.get


class Section(
    BaseModel,
    frozen=True,
    extra="forbid",
    strict=True,
    arbitrary_types_allowed=True,
):
    """An immutable table; the constructor raises PoolValidateError with every problem of bad values.

    Each subclass says `frozen=True` again, because type checkers do not inherit it. A field with `exclude=True` is set
    by the program: files cannot give it.
    """

    # The name of the table in files, by which `OTHER_TOOLS` lists keys of other tools; "" for a server's.
    table: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_with_every_problem(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if is_within_validation() or not isinstance(data, dict):
            return validate(data)
        reset_suggestions()
        findings: list[Finding] = []
        section = validated(cls, data, findings, validate)
        if section is None:
            refuse(cls.__name__, findings)
        return section

    def findings(self) -> Iterable[Finding]:
        """Contradictions between the table's keys; their paths are relative to the table."""
        return ()

    def rules(self) -> Iterable[Iterable[Finding]]:
        """The contradictions by rule: `checked` skips rules that read an invalid key."""
        return (self.findings(),)

    @classmethod
    def keys_in_files(cls) -> tuple[str, ...]:
        """The keys that files can set."""
        return keys_of(cls)

    @classmethod
    def keys_at(cls, path: KeyPath) -> tuple[str, ...]:
        """The keys that files can set at a path within the table; () if there is no table."""
        here: type[Section] | None = cls
        for part in path:
            if isinstance(part, str) and here is not None:
                here = tables_within(here).get(part)
        return () if here is None else here.keys_in_files()

    def replace(self, /, **changes: Any) -> Self:
        """A copy with other values, validated like a new table: `model_copy(update=…)` checks nothing."""
        kept = {name: getattr(self, name) for name in self.model_fields_set - changes.keys()}
        return type(self)(**kept, **changes)

    def __replace__(self, /, **changes: Any) -> Self:  # copy.replace, from Python 3.13 on
        return self.replace(**changes)

    def to_dict(self) -> dict[str, Tree]:
        """The table as it would be written in a file: defaults filled in, unset keys left out."""
        values = ((name, getattr(self, name)) for name in keys_of(type(self)))
        return {name: _as_written(value, only_given=False) for name, value in values if value is not None}

    def as_given(self) -> dict[str, Tree]:
        """The keys that were given, as they would be written in a file."""
        names = (name for name in keys_of(type(self)) if name in self.model_fields_set)
        return {name: _as_written(getattr(self, name), only_given=True) for name in names}


def _as_written(value: Tree, *, only_given: bool) -> Tree:
    if isinstance(value, Section):
        return value.as_given() if only_given else value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_as_written(element, only_given=only_given) for element in value]
    return dict(value) if isinstance(value, dict) else value


def refuse(what: str, findings: list[Finding], name: str = "", bind: str = "") -> NoReturn:
    """Raise PoolValidateError with the findings; `what` names the invalid object in the message."""
    problems = [problem_of(finding, name=name, bind=bind) for finding in findings]
    raise PoolValidateError(
        f"{what} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems
    ) from None


def validated(
    kind: type[Kind],
    table: Tree,
    findings: list[Finding],
    validate: Callable[[Tree], Kind] | None = None,
) -> Kind | None:
    """Return the table as an instance of `kind`; if it is invalid, add its problems to `findings` and return None.

    A constructor passes its `validate`, which fills its instance.
    """
    token = _is_part.set(True)
    try:
        return (validate or kind.model_validate)(table)
    except ValidationError as error:
        reported = {finding.path for finding in findings}
        problems = findings_of(error, kind.keys_at, kind.table)
        findings += [finding for finding in problems if finding.path not in reported]
        return None
    finally:
        _is_part.reset(token)


def checked(
    kind: type[Kind],
    table: dict[str, Tree],
    findings: list[Finding],
    validate: Callable[[Tree], Kind] | None = None,
) -> Kind | None:
    """Return the valid part of a table, without attributes for invalid keys; add all problems to `findings`.

    Problems include contradictions between valid keys. None if a required key is missing and has no example.
    """
    problems: list[Finding] = []
    part = validated(kind, table, problems, validate)
    part = part or _valid_part(kind, table, [finding.path for finding in problems])
    for batch in problems, _contradictions(part) if part else ():
        reported = {finding.path for finding in findings}
        findings += [finding for finding in batch if finding.path not in reported]
    return part


def _valid_part(kind: type[Kind], table: dict[str, Tree], wrong: list[KeyPath]) -> Kind | None:
    names = {str(path[0]) for path in wrong}
    kept = {name: value for name, value in table.items() if name not in names}
    for name in names & kind.model_fields.keys():
        if examples := kind.model_fields[name].examples:
            kept[name] = examples[0]
    part = validated(kind, kept, [])
    if part is None:
        return None
    for name in names:
        vars(part).pop(name, None)
        inner, within = tables_within(kind).get(name), [path[1:] for path in wrong if path[0] == name]
        is_table = inner is not None and isinstance(table.get(name), dict) and all(within)
        if inner and is_table and (inner_part := _valid_part(inner, table[name], within)) is not None:
            vars(part)[name] = inner_part
            part.model_fields_set.add(name)
    return part


def _contradictions(section: Section, path: KeyPath = ()) -> Iterator[Finding]:
    for rule in section.rules():
        try:
            for finding in rule:
                yield finding._replace(path=(*path, *finding.path))
        except AttributeError as error:
            # It reads a key that is invalid, which is reported already.
            owner = type(error.obj)
            if not issubclass(owner, Section) or error.name not in {
                *owner.model_fields,
                *owner.__private_attributes__,
            }:
                raise
    for name in section.model_fields_set:
        value = vars(section).get(name)
        if isinstance(value, Section):
            yield from _contradictions(value, (*path, name))


@cache
def keys_of(kind: type[Section]) -> tuple[str, ...]:
    """The keys of a table, without values that only the program sets."""
    return tuple(name for name, field in kind.model_fields.items() if not field.exclude)


@dataclass
class _Form:
    """The forms in which a key's value may be written.

    `marks` are the key's annotations, `table` its class if it is a table, `elements` the form of a list's elements;
    with `or_single` one element may stand for the list.
    """

    marks: list[Short | Flat | Relative]
    table: type[Section] | None = None
    elements: _Form | None = None
    or_single: bool = False

    @classmethod
    def of(cls, annotation: Any, metadata: Iterable[Any] = ()) -> _Form:
        form, alternatives = cls([]), [annotation]
        marks = [*metadata]
        while alternatives:
            alternative = alternatives.pop()
            origin = get_origin(alternative)
            if origin is Annotated:
                marks += alternative.__metadata__
                alternatives.append(alternative.__origin__)
            elif origin in (Union, UnionType):
                alternatives += get_args(alternative)
            elif origin is tuple:
                elements = cls.of(get_args(alternative)[0])
                form.elements = elements if elements.marks or elements.table else None
            elif isinstance(alternative, type) and issubclass(alternative, Section):
                form.table = alternative
        form.or_single = any(isinstance(mark, OrSingle) for mark in marks)
        form.marks = [mark for mark in reversed(marks) if isinstance(mark, (Short, Flat, Relative))]
        return form

    @property
    def has_paths(self) -> bool:
        """Whether the value holds paths."""
        inner = [*forms_of(self.table).values()] if self.table else []
        inner += [self.elements] if self.elements else []
        return any(isinstance(mark, Relative) for mark in self.marks) or any(form.has_paths for form in inner)

    def long(self, value: Tree, directory: str) -> Tree:
        """The value in its long form, with absolute paths."""
        for mark in self.marks:
            value = mark.absolute(value, directory) if isinstance(mark, Relative) else mark.long(value)
        if self.table and isinstance(value, dict):
            return long_form(self.table, value, directory)
        if self.elements and isinstance(value, (list, tuple)):
            return [self.elements.long(element, directory) for element in value]
        return self.elements.long(value, directory) if self.elements and self.or_single else value


@cache
def forms_of(kind: type[Section]) -> dict[str, _Form]:
    """The keys of a table that have a short form, a path, or tables within them."""
    forms = {name: _Form.of(field.annotation, field.metadata) for name, field in kind.model_fields.items()}
    return {name: form for name, form in forms.items() if form.marks or form.table or form.elements}


def long_form(kind: type[Section], table: Mapping[str, Tree], directory: str) -> dict[str, Tree]:
    """The table of a file in `directory` with every key in its long form, and with absolute paths.

    Two tables can be merged key by key only in this form.
    """
    forms = forms_of(kind)
    return {key: forms[key].long(value, directory) if key in forms else value for key, value in table.items()}


def tables_within(kind: type[Section]) -> dict[str, type[Section]]:
    """Return {key: class of the nested table} for each key of `kind` whose value is a table or a list of tables."""
    tables = (
        (name, form.table or (form.elements and form.elements.table)) for name, form in forms_of(kind).items()
    )
    return {name: table for name, table in tables if table}


def with_feature_keys(kind: type[Kind]) -> type[Kind]:
    """Return the subclass of section class `kind` with which a feature adds keys; `kind` itself if there is none."""
    name = kind.__name__
    subclasses = (feature.load(feature.sections[name]) for feature in features() if name in feature.sections)
    return next(subclasses, kind)


class Table(Section, frozen=True):
    """The base class of a file's optional tables, with methods that check such a table."""

    # Its name in files.
    table_name: ClassVar[str] = ""
    # Whether files define a list of such tables; a later file's list replaces earlier ones, unless `merged_by` is set.
    listed: ClassVar[bool] = False
    # In a list, a later file's table is merged into the earlier table with the same value of this key, or added.
    merged_by: ClassVar[str] = ""
    # Whether it is a route to a server or elsewhere.
    is_route: ClassVar[bool] = False

    @property
    def stop_seconds(self) -> float:
        """Return the maximum time that the feature of this table needs to stop after every server has stopped."""
        return 0.0

    @property
    def label(self) -> str:
        """The name that distinguishes a table in a list for display; "" for a table that exists only once."""
        return ""

    @classmethod
    def in_long_form(
        cls, table: Mapping[str, Tree], written: Mapping[str, Tree], directory: str
    ) -> dict[str, Tree]:
        """The table in its long form, with absolute paths; `directory` is that of its file.

        `written` is the table before references to variables were replaced.
        """
        return long_form(cls, table, directory)

    @classmethod
    def with_derived_values(cls, table: dict[str, Tree]) -> dict[str, Tree]:
        """The table, merged from all files, with values that are derived from other keys."""
        return table

    def findings_against_other_tables(self, tables: Mapping[str, Tree]) -> Iterable[Finding]:
        """Return contradictions between this table and other tables. The path of each finding starts in this table.

        `tables` has the other tables by name, with None for an invalid table.
        """
        return ()

    @property
    def has_startup_warnings(self) -> bool:
        """Whether `check` may find something to warn about at startup."""
        return False

    def check(self, env: Mapping[str, str], names: Collection[str]) -> Iterable[Finding]:
        """Check files, variables and the like to which the table refers.

        `names` has the names of all tables in the pool's files. Blocks on the disk.
        """
        return ()
