"""Why a selection matched nothing, and what the user may have meant."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Protocol

    class Selectable(Protocol):
        """What servers are selected by."""

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


_NEAR_NAMES = 3
# Near names of thousands of words, such as a shell's for `*`, would hold up the supervisor.
_SHOWN_WORDS = 10
_LONGEST_WORD = 200


class Unmatched:
    """Why a selection matched nothing: unknown targets with similar names, or options that match no server."""

    __slots__ = ("near", "options", "targets")

    def __init__(
        self,
        targets: Sequence[str] = (),
        near: Mapping[str, Sequence[str]] | None = None,
        *,
        options: str = "",
    ) -> None:
        self.targets = list(targets)
        self.options = options
        self.near = {target: list(names) for target, names in (near or {}).items()}

    @property
    def message(self) -> str:
        """One line: what matched nothing."""
        if not self.targets:
            return f"no server matches {self.options}".rstrip()
        shown = ", ".join(repr(target) for target in self.targets[:_SHOWN_WORDS])
        more = len(self.targets) - _SHOWN_WORDS
        return f"no server matches {shown}" + (f" and {more} more" if more > 0 else "")

    @property
    def hint(self) -> str:
        """Near names, or where the names are listed."""
        names = list(dict.fromkeys(name for near in self.near.values() for name in near))
        if names:
            return f"did you mean {' or '.join(repr(name) for name in names)}?"
        if self.targets:
            return "poolctl list --field name shows the names"
        return "poolctl list -o wide shows all servers; --allow-empty accepts that options match nothing"

    def __repr__(self) -> str:
        return f"<Unmatched {self.targets or 'options'}>"


def unmatched_targets(unknown: Sequence[str], items: Sequence[Selectable]) -> Unmatched:
    """Targets that name no server, the first of them with what is near."""
    return Unmatched(unknown, {target: _near(target, items) for target in unknown[:_SHOWN_WORDS]})


def unmatched_options(options: str, tags: Sequence[str], items: Sequence[Selectable]) -> Unmatched:
    """Options that fit no server; for tags that none has, those that look like them: they are compared with case."""
    known = dict.fromkeys(tag for item in items for tag in item.tags)
    unknown = [tag for tag in tags if tag not in known]
    return Unmatched(near={tag: close(tag, known) for tag in unknown[:_SHOWN_WORDS]}, options=options)


def close(word: str, words: Iterable[str]) -> list[str]:
    """Those of the words that look like it, upper and lower case alike."""
    import difflib

    by_fold = {each.casefold(): each for each in words}
    near = difflib.get_close_matches(word[:_LONGEST_WORD].casefold(), by_fold, n=_NEAR_NAMES)
    return [by_fold[fold] for fold in near]


def _near(target: str, items: Sequence[Selectable]) -> list[str]:
    """Names, then addresses, that look like the target; wildcards in it are left out of the comparison."""
    bare = target.replace("*", "").replace("?", "")
    names = [item.name for item in items]
    binds = [item.bind for item in items]
    port = target.rpartition(":")[2]
    same_port = [bind for bind in binds if port.isdigit() and bind.endswith(f":{port}")]
    return close(bare, names) or same_port[:_NEAR_NAMES] or close(bare, binds)
