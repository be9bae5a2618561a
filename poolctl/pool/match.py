"""Which servers a filter means: equal ignoring case, or a regular expression found in the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import compress
from operator import attrgetter
from typing import TYPE_CHECKING

from poolctl.address import AddressError, canonical
from poolctl.errors import PoolParamError
from poolctl.states import Field

if TYPE_CHECKING:
    from .server import Server

Members = dict[str, "Server"]

_name_of = attrgetter("_config.name")
_expose_of = attrgetter("_config.expose")


def matching(members: Members, field: Field, pattern: str, regex: str) -> Members:
    """The members that match, in their order. Raises PoolParamError for an unknown field or a bad expression.

    Both `pattern` and `regex` empty match nothing. Built of iterators that run in C: at 100,000 servers a filter
    costs less than a comprehension that asks each one.
    """
    field = checked(field)
    search = _compiled(regex)
    wanted = _wanted(field, pattern)
    if not wanted and search is None:
        return {}
    found: list[Iterable[object]] = []
    if wanted:
        found.append(_equal(members, field, wanted))
    if search is not None:
        found.append(map(search, values(members, field)))
    flags = found[0] if len(found) == 1 else [one or other for one, other in zip(*found, strict=True)]
    return dict(compress(members.items(), flags))


def checked(field: Field) -> Field:
    """The field, which may be given by its name. Raises PoolParamError."""
    try:
        return Field(field)
    except ValueError:
        allowed = ", ".join(member.value for member in Field)
        raise PoolParamError(f"{field!r} is no field of a server; one of: {allowed}") from None


def values(members: Members, field: Field) -> Iterable[str]:
    """That field of each member, in order."""
    if field is Field.BIND:
        return members
    return map(_name_of if field is Field.NAME else _expose_of, members.values())


def _wanted(field: Field, pattern: str) -> str:
    if not isinstance(pattern, str):
        raise PoolParamError(f"a pattern is a string, and this is {pattern!r}")
    if field is Field.BIND and pattern:
        try:
            pattern = canonical(pattern)
        except AddressError:
            pass
    return pattern.casefold()


def _equal(members: Members, field: Field, wanted: str) -> Iterable[object]:
    folded = map(str.casefold, values(members, field))
    if field is not Field.EXPOSE or "://" in wanted:
        return map(wanted.__eq__, folded)
    return [text == wanted or text.partition("://")[2] == wanted for text in folded]


def _compiled(regex: str) -> Callable[[str], object] | None:
    if not isinstance(regex, str):
        raise PoolParamError(f"a regular expression is a string, and this is {regex!r}")
    if not regex:
        return None
    try:
        return re.compile(regex).search
    except re.error as bad:
        at = bad.pos or 0
        hint = f"{regex}\n{' ' * at}^"
        raise PoolParamError(
            f"invalid regular expression {regex!r}: {bad.msg} at position {at}", hint=hint
        ) from bad
    except (RecursionError, OverflowError) as bad:
        raise PoolParamError("the regular expression is too complicated") from bad
