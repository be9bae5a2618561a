"""The selector language that all commands use.

Works on any Selectable object, in the supervisor and in commands. Slow imports (`regex`, `difflib`, addresses) happen
only when a selection needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from poolctl.selection.regular_expressions import BadExpression

    class Selectable(Protocol):
        """An object with the values by which servers are selected."""

        @property
        def name(self) -> str: ...
        @property
        def bind(self) -> str: ...
        @property
        def expose(self) -> str: ...
        @property
        def state(self) -> str: ...
        @property
        def health(self) -> str: ...
        @property
        def tags(self) -> Sequence[str]: ...

    Server = TypeVar("Server", bound=Selectable)
    Test = Callable[[Selectable], bool]

__all__ = ["NothingMatched", "Selector", "SelectorError", "select"]

# The keys of a selector that hold a list of words, in a command request and in its JSON form.
LISTS = ("targets", "name", "bind", "expose", "tag", "state", "health")
# The keys whose words are regular expressions.
EXPRESSIONS = ("name", "bind", "expose")
# Selects stopped servers that exited by themselves, as if it were a state.
ENDED = "ended"
_MAX_SUGGESTIONS = 3
# A shell may expand `*` to thousands of words; searching similar names for all of them would block the supervisor.
_MAX_SHOWN_WORDS = 10
_MAX_WORD_LENGTH = 200


class SelectorError(ValueError):
    """A selector that cannot be understood (a usage error); ``hint`` shows the place or names the fix."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NothingMatched(Exception):
    """The selection is empty; ``message`` names the words without a match, ``hint`` the fix."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Selector:
    """Selects servers that match at least one value in each list that is not empty; `invert` selects the others."""

    def __init__(
        self,
        targets: Iterable[str] = (),
        *,
        name: Iterable[str] = (),
        bind: Iterable[str] = (),
        expose: Iterable[str] = (),
        tag: Iterable[str] = (),
        state: Iterable[str] = (),
        health: Iterable[str] = (),
        invert: bool = False,
        allow_empty: bool = False,
        compiles: bool = True,
    ) -> None:
        """Raise SelectorError for an empty word, an unknown state or health, and an invalid expression.

        With `compiles=False` the caller evaluates the expressions: they match nothing until it sets `matched`, a map
        from field to matching values.
        """
        self.targets = list(targets)
        self.name = list(name)
        self.bind = list(bind)
        self.expose = list(expose)
        self.tag = list(tag)
        self.state = [_canonical_choice("state", word) for word in state]
        self.health = [_canonical_choice("health", word) for word in health]
        self.invert = bool(invert)
        self.allow_empty = bool(allow_empty)
        for key in LISTS:
            if "" in getattr(self, key):
                raise empty_value_error(key)
        self.matched: dict[str, frozenset[str]] | None = None if compiles else {}
        for field in EXPRESSIONS if compiles else ():
            check_expressions(field, getattr(self, field))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Selector:
        """Create a selector from the result of `to_dict`. Raises SelectorError for unknown keys, values or wrong types.

        The caller must evaluate the regular expressions, and set `matched` to the matching values of each field.
        """
        lists = {key: _list_of_words(key, data.get(key)) for key in LISTS}
        unknown = sorted(set(data) - {*LISTS, "not", "allow_empty"})
        if unknown:
            raise SelectorError(f"unknown key {unknown[0]!r} in the selector")
        targets = lists.pop("targets")
        invert, allow_empty = bool(data.get("not")), bool(data.get("allow_empty"))
        return cls(targets, **lists, invert=invert, allow_empty=allow_empty, compiles=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that from_dict() reads."""
        lists: dict[str, Any] = {key: list(getattr(self, key)) for key in LISTS}
        return {**lists, "not": self.invert, "allow_empty": self.allow_empty}

    @property
    def selects_all(self) -> bool:
        """Whether the selector is empty, so that it selects all servers."""
        return not self.invert and not any(getattr(self, key) for key in LISTS)

    def names(self, name: str, bind: str) -> bool:
        """Whether a target equals this name (ignoring case) or address; patterns do not count."""
        words = (name.casefold(), bind.casefold())
        return any(target.casefold() in words or _canonical(target) == bind for target in self.targets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        parts = [f"{key}={value!r}" for key in LISTS if (value := getattr(self, key))]
        parts += ["not"] * self.invert + ["allow_empty"] * self.allow_empty
        return f"<Selector {' '.join(parts) or 'all'}>"


def empty_value_error(option: str) -> SelectorError:
    """The error for an option with an empty value, for example from an unset shell variable."""
    return SelectorError(
        f"{option} is empty, perhaps because a variable is not set",
        hint='in a shell, "${NAME:?}" instead of "$NAME" stops at a variable that is not set',
    )


def missing_selection_error(verb: str, count: int | None) -> SelectorError:
    """The error for a command that needs an explicit selection.

    `count` is the number of servers in the pool, or None if it is unknown.
    """
    servers = "the only server" if count == 1 else "all servers" if count is None else f"all {count} servers"
    return SelectorError(
        f"{verb} without a selection would change {servers} of the pool",
        hint="name servers or select them by an option, or pass --all (all=True in Python) for all of them",
    )


def select(items: Iterable[Server], selector: Selector) -> list[Server]:
    """Return the selected items in order.

    Raises NothingMatched if a target matches no item or, unless the selector's `allow_empty` is true, no item is
    selected.
    """
    everything = list(items)
    if selector.selects_all:
        return everything
    wanted, unknown = _match_targets(everything, selector.targets)
    if unknown:
        raise _unmatched_targets(unknown, everything)
    tests = _tests(selector, everything)
    chosen = [
        item
        for at, item in enumerate(everything)
        if ((wanted is None or at in wanted) and all(test(item) for test in tests)) is not selector.invert
    ]
    if not chosen and not selector.allow_empty:
        raise _unmatched_options(_options_text(selector), selector.tag, everything)
    return chosen


def _match_targets(items: Sequence[Selectable], targets: list[str]) -> tuple[set[int] | None, list[str]]:
    """Return the positions of matching items, and the targets that match none; (None, []) if there are no targets."""
    if not targets:
        return None, []
    positions: dict[str, list[int]] = {}
    for at, item in enumerate(items):
        for word in {item.name.casefold(), item.bind}:
            positions.setdefault(word, []).append(at)
    wanted: set[int] = set()
    unknown = []
    for target in dict.fromkeys(targets):
        matches = _match_target(target, positions)
        if not matches:
            unknown.append(target)
        wanted.update(matches)
    return wanted, unknown


def _match_target(target: str, positions: Mapping[str, list[int]]) -> list[int]:
    matches = [*positions.get(target.casefold(), ()), *positions.get(_canonical(target), ())]
    if "*" in target or "?" in target:
        matches += [at for word in positions if matches_pattern(word, target) for at in positions[word]]
    return matches


def matches_pattern(word: str, pattern: str) -> bool:
    """Whether the pattern with the wildcards `*` and `?` matches the whole word, ignoring case."""
    from fnmatch import fnmatchcase

    # fnmatch uses atomic groups, so many asterisks stay fast. `[` is escaped: it is not a wildcard here.
    return fnmatchcase(word.casefold(), pattern.casefold().replace("[", "[[]"))


def _canonical(target: str) -> str:
    if ":" not in target and "/" not in target:
        return target
    from poolctl.address import canonical

    try:
        return canonical(target)
    except ValueError:
        return target


def _tests(selector: Selector, items: Sequence[Selectable]) -> list[Test]:
    tests = [_expression_test(selector, field, items) for field in EXPRESSIONS if getattr(selector, field)]
    if selector.tag:
        tags = set(selector.tag)
        tests.append(lambda item: not tags.isdisjoint(item.tags))
    tests += [
        _is_one_of(field, words) for field in ("state", "health") if (words := set(getattr(selector, field)))
    ]
    return tests


def _expression_test(selector: Selector, field: str, items: Sequence[Selectable]) -> Test:
    if selector.matched is not None:
        return _is_one_of(field, selector.matched.get(field, frozenset()))
    values = {getattr(item, field) or "" for item in items}
    matched = matching_values(field, getattr(selector, field), values)
    return lambda item: (getattr(item, field) or "") in matched


def _is_one_of(field: str, words: AbstractSet[str]) -> Test:
    if field == "state" and ENDED in words:
        return lambda item: getattr(item, field) in words or bool(getattr(item, "ended", None))
    return lambda item: getattr(item, field) in words


def check_expressions(option: str, expressions: Sequence[str]) -> None:
    """Raise SelectorError, which names `option`, if a regular expression is invalid."""
    if expressions:
        from poolctl.selection.regular_expressions import BadExpression, check

        try:
            for expression in expressions:
                check(expression)
        except BadExpression as bad:
            raise expression_error(option, bad) from None


def matching_values(option: str, expressions: Sequence[str], values: Iterable[str]) -> frozenset[str]:
    """Return the values that contain a match of any of the expressions.

    Raises SelectorError, which names `option`, for an invalid expression, and if they take too long.
    """
    from poolctl.selection.regular_expressions import BadExpression, matching_texts

    try:
        return matching_texts(expressions, values)
    except BadExpression as bad:
        raise expression_error(option, bad) from None


def expression_error(option: str, bad: BadExpression) -> SelectorError:
    """The error for an invalid regular expression in `option`."""
    return SelectorError(f"{option}: {bad}", hint=bad.hint)


def _canonical_choice(field: str, word: str) -> str:
    from poolctl.states import State, Status

    allowed = [str(member.value) for member in (State if field == "state" else Status)]
    allowed += [ENDED] if field == "state" else []
    if word.casefold() in allowed:
        return word.casefold()
    near = similar_words(word, allowed)
    choices = f"one of: {', '.join(allowed)}"
    raise SelectorError(
        f"unknown {field} {word!r}", hint=f"did you mean {near[0]!r}? {choices}" if near else choices
    )


def _list_of_words(key: str, value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise SelectorError(f"{key!r} of the selector must be a list of strings")
    return list(value)


def _options_text(selector: Selector) -> str:
    words = [f"--{key} {word}" for key in LISTS if key != "targets" for word in getattr(selector, key)]
    return " ".join([*words, *["--not"] * selector.invert])


def _unmatched_targets(unknown: Sequence[str], items: Sequence[Selectable]) -> NothingMatched:
    """The error for targets that match no server; its hint has names similar to the first ten targets."""
    shown, more = unknown[:_MAX_SHOWN_WORDS], len(unknown) - _MAX_SHOWN_WORDS
    message = f"no server matches {', '.join(map(repr, shown))}" + (f" and {more} more" if more > 0 else "")
    near = [name for target in shown for name in _similar_targets(target, items)]
    return NothingMatched(message, _did_you_mean(near) or "poolctl list -o name shows the names")


def _unmatched_options(options: str, tags: Sequence[str], items: Sequence[Selectable]) -> NothingMatched:
    """The error for options that match no server; its hint has tags similar to unknown tags in `tags`.

    A similar tag may differ in case only, because tags are case-sensitive.
    """
    existing = dict.fromkeys(tag for item in items for tag in item.tags)
    unknown = [tag for tag in tags if tag not in existing][:_MAX_SHOWN_WORDS]
    hint = "poolctl list -o wide shows all servers; --allow-empty accepts that options match nothing"
    near = [name for tag in unknown for name in similar_words(tag, existing)]
    return NothingMatched(f"no server matches {options}".rstrip(), _did_you_mean(near) or hint)


def _did_you_mean(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(map(repr, dict.fromkeys(names)))}?" if names else ""


def similar_words(word: str, words: Iterable[str]) -> list[str]:
    """At most three of `words` that resemble `word`, ignoring case, the most similar first."""
    import difflib

    by_fold = {candidate.casefold(): candidate for candidate in words}
    near = difflib.get_close_matches(word[:_MAX_WORD_LENGTH].casefold(), by_fold, n=_MAX_SUGGESTIONS)
    return [by_fold[fold] for fold in near]


def _similar_targets(target: str, items: Sequence[Selectable]) -> list[str]:
    """Suggest at most three names or addresses for a target that matched nothing; its `*` and `?` are ignored.

    First similar names, then names with the target as a part, then addresses with the same or a similar port; for a
    target without a port, similar addresses.
    """
    bare = target.replace("*", "").replace("?", "")
    names = [item.name for item in items]
    binds = [item.bind for item in items]
    port = target.rpartition(":")[2]
    part = bare.casefold().replace("_", "-")
    if near := similar_words(bare, names) or [
        name for name in names if part and part in name.casefold().replace("_", "-").split("-")
    ]:
        return near[:_MAX_SUGGESTIONS]
    if not port.isdigit():
        return similar_words(bare, binds)
    by_port = {bind.rpartition(":")[2]: bind for bind in reversed(binds)}
    same_port = [bind for bind in binds if bind.endswith(f":{port}")]
    return same_port[:_MAX_SUGGESTIONS] or [by_port[word] for word in similar_words(port, by_port)]
