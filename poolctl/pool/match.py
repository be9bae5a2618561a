"""Which servers a filter means: equal ignoring case, or a regular expression found in the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from itertools import compress
from typing import Protocol, TypeVar

from poolctl.address import AddressError, canonical
from poolctl.errors import PoolParamError
from poolctl.states import Field


class Named(Protocol):
    """What has a name, and an address for clients."""

    _name: str
    _expose: str


class Row:
    """A server that is known by name and exposed address only: one of another process."""

    __slots__ = ("_expose", "_name")

    def __init__(self, name: str, expose: str) -> None:
        self._name = name
        self._expose = expose


Member = TypeVar("Member", bound=Named)


def matching(members: dict[str, Member], field: Field | str, pattern: str, regex: str) -> dict[str, Member]:
    """The members that match, in their order.

    Both `pattern` and `regex` empty match nothing. Raises PoolParamError for an unknown field or a bad expression.
    Costs about as much as a bare comprehension; nothing is kept on the way that the garbage collector would count.
    """
    field = checked(field)
    search = _compiled(regex)
    wanted = _wanted(field, pattern)
    found = values(members, field)
    binds: list[str] = []
    if wanted and search is not None:
        equal = _equal(field, wanted)
        binds = [bind for bind, text in zip(members, found, strict=True) if equal(text) or search(text)]
    elif search is not None:
        binds = list(compress(members, map(search, found)))
    elif wanted and field is Field.NAME:
        binds = [bind for bind, server in members.items() if server._name.casefold() == wanted]
    elif wanted and (field is Field.BIND or "://" in wanted):
        binds = [bind for bind, text in zip(members, found, strict=True) if text.casefold() == wanted]
    elif wanted:
        equal = _equal(field, wanted)
        binds = [
            bind
            for bind, text in zip(members, found, strict=True)
            if text.casefold().endswith(wanted) and equal(text)
        ]
    if len(binds) == len(members):
        return members.copy()
    return dict(zip(binds, map(members.__getitem__, binds), strict=True))


def checked(field: Field | str) -> Field:
    """The field, which may be given by its name. Raises PoolParamError."""
    try:
        return Field(field)
    except ValueError:
        allowed = ", ".join(member.value for member in Field)
        raise PoolParamError(f"{field!r} is no field of a server; one of: {allowed}") from None


def values(members: Mapping[str, Member], field: Field) -> Collection[str]:
    """That field of each member, in order."""
    if field is Field.BIND:
        return members
    if field is Field.NAME:
        return [server._name for server in members.values()]
    return [server._expose for server in members.values()]


def _wanted(field: Field, pattern: str) -> str:
    if not isinstance(pattern, str):
        raise PoolParamError(f"a pattern is a string, and this is {pattern!r}")
    if field is Field.BIND and pattern:
        try:
            pattern = canonical(pattern)
        except AddressError:
            pass
    return pattern.casefold()


def _equal(field: Field, wanted: str) -> Callable[[str], bool]:
    if field is Field.EXPOSE and "://" not in wanted:
        return lambda text: wanted in (folded := text.casefold(), folded.partition("://")[2])
    return lambda text: text.casefold() == wanted


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
