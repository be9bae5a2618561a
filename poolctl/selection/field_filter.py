"""Selects servers by one field, which must equal a pattern (ignoring case) or contain a match of an expression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from itertools import compress
from typing import Protocol, TypeVar

from poolctl.address import AddressError, canonical
from poolctl.errors import PoolParamError
from poolctl.selection.regular_expressions import BadExpression, compiled


class Field(StrEnum):
    """The field of a server to which a filter applies."""

    NAME = "name"
    BIND = "bind"
    EXPOSE = "expose"


class Filterable(Protocol):
    """A server with its name and the address that clients use."""

    _name: str
    _expose: str


Member = TypeVar("Member", bound=Filterable)


def matching(members: dict[str, Member], field: Field | str, pattern: str, regex: str) -> dict[str, Member]:
    """The members, keyed by bind address, whose field equals `pattern` or contains a match of `regex`, in order.

    An empty `pattern` or `regex` matches nothing. The expression is matched in this thread without a time limit. Raises
    PoolParamError for an unknown field or a bad expression.
    """
    field = parse_field(field)
    matches = value_test(field, pattern, compiled_search(regex))
    return dict(compress(members.items(), map(matches, member_values(members, field))))


def value_test(field: Field, pattern: str, search: Callable[[str], object] | None) -> Callable[[str], bool]:
    """Return a function that is true for values equal to `pattern`, and for values in which `search` finds a match.

    The comparison ignores case. `pattern` may spell a bind address differently, and may omit an exposed URL's scheme.
    """
    wanted = _normalize_pattern(field, pattern)
    without_scheme = field is Field.EXPOSE and "://" not in wanted

    def matches(text: str) -> bool:
        folded = text.casefold()
        if wanted and (folded == wanted or (without_scheme and folded.partition("://")[2] == wanted)):
            return True
        return search is not None and search(text) is not None

    return matches


def parse_field(field: Field | str) -> Field:
    """The field, which may be given by its name. Raises PoolParamError."""
    try:
        return Field(field)
    except ValueError:
        allowed = ", ".join(member.value for member in Field)
        raise PoolParamError(f"{field!r} is no field of a server; one of: {allowed}") from None


def member_values(members: Mapping[str, Member], field: Field) -> Iterable[str]:
    """The values of the field, one for each member in order."""
    if field is Field.BIND:
        return members
    return (member._name if field is Field.NAME else member._expose for member in members.values())


def _normalize_pattern(field: Field, pattern: str) -> str:
    if not isinstance(pattern, str):
        raise PoolParamError(f"a pattern is a string, and this is {pattern!r}")
    if field is Field.BIND and pattern:
        try:
            pattern = canonical(pattern)
        except AddressError:
            pass
    return pattern.casefold()


def compiled_search(regex: str) -> Callable[[str], object] | None:
    """The function that searches a text for `regex`, None if it is empty. Raises PoolParamError for an invalid one."""
    if not isinstance(regex, str):
        raise PoolParamError(f"a regular expression is a string, and this is {regex!r}")
    if not regex:
        return None
    try:
        return compiled(regex).search
    except BadExpression as bad:
        raise PoolParamError(str(bad), hint=bad.hint) from bad
