"""Selects servers by one field: it equals a pattern (ignoring case) or contains a match of a regular expression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import StrEnum
from itertools import compress
from typing import Protocol, TypeVar

from poolctl.address import AddressError, canonical
from poolctl.errors import PoolParamError
from poolctl.selection.regular_expressions import BadExpression, matching_texts


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
    """Filter `members` (by bind address): keep those with a field equal to `pattern` or containing a match of `regex`.

    An empty `pattern` or `regex` matches nothing. Raises PoolParamError for an unknown field, and for an expression
    that is invalid or takes too long.
    """
    field = parse_field(field)
    values = [*member_values(members, field)]
    matches = value_test(field, pattern, values_with_match(regex, values))
    return dict(compress(members.items(), map(matches, values)))


def value_test(field: Field, pattern: str, matched: AbstractSet[str]) -> Callable[[str], bool]:
    """Return a function that is true for values equal to `pattern`, and for values in `matched`.

    The comparison ignores case. `pattern` may spell a bind address differently, and may omit an exposed URL's scheme.
    """
    wanted = _normalize_pattern(field, pattern)
    without_scheme = field is Field.EXPOSE and "://" not in wanted

    def matches(text: str) -> bool:
        folded = text.casefold()
        if wanted and (folded == wanted or (without_scheme and folded.partition("://")[2] == wanted)):
            return True
        return text in matched

    return matches


def parse_field(field: Field | str) -> Field:
    """Convert a field's name to a Field. Raises PoolParamError for an unknown name."""
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


def values_with_match(regex: str, values: Iterable[str]) -> frozenset[str]:
    """Return the values that contain a match of `regex`; none if `regex` is empty.

    Raises PoolParamError for an expression that is invalid or takes too long.
    """
    if not isinstance(regex, str):
        raise PoolParamError(f"a regular expression is a string, and this is {regex!r}")
    try:
        return matching_texts([regex], values) if regex else frozenset()
    except BadExpression as bad:
        raise PoolParamError(str(bad), hint=bad.hint) from bad
