"""The servers that a request selects."""

from __future__ import annotations

from poolctl.control.answers import Item, Result
from poolctl.control.messages import failure
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.errors import PoolParamError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.matching.matcher import matcher
from poolctl.pool.select import EXPRESSIONS, Selector, SelectorError, select

from .reports import Reports


class NothingMatched(Exception):
    """The selection is empty, or names a server that does not exist; carries the answer."""

    def __init__(self, result: Result) -> None:
        super().__init__("nothing matched")
        self.result = result


class Selection:
    """Selects entries of one core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._reports = Reports(core)

    async def match(self, selector: Selector) -> None:
        """Have the selector's regular expressions matched, in another process. Raises SelectorError."""
        given = [field for field in EXPRESSIONS if getattr(selector, field)]
        if not given or selector.matched is None:
            return
        items = self._reports.items(list(self._core.entries.values()))
        for field in given:
            values = sorted({str(getattr(item, field)) for item in items})
            answer = await matcher().answer(getattr(selector, field), values)
            if answer.problem:
                raise SelectorError(f"{field}: {answer.problem}", hint=answer.hint)
            selector.matched[field] = frozenset(values[at] for at in answer.found)

    def of(self, selector: Selector) -> list[Entry]:
        """The entries in the order of the file. Raises NothingMatched."""
        entries = list(self._core.entries.values())
        if selector.selects_all:
            return entries
        chosen, unmatched = select(self._reports.items(entries), selector)
        if unmatched is not None:
            nothing = failure(PoolParamError, unmatched.message, unmatched.hint)
            raise NothingMatched(Result(errors=(nothing,), exit_code=NOTHING_MATCHED))
        names = {each.name for each in chosen}
        return [entry for entry in entries if entry.name in names]

    def items(self, selector: Selector) -> tuple[Item, ...]:
        """The selected entries, as every command prints them. Raises NothingMatched."""
        return self._reports.items(self.of(selector))
