"""The servers that a request means."""

from __future__ import annotations

from poolctl.control.messages import Document, failure, result
from poolctl.errors import PoolParamError
from poolctl.exit_codes import NOTHING_MATCHED
from poolctl.pool.select import Selector, select

from ..engine.engine import Engine
from ..engine.entry import Entry
from .reports import Reports


class NothingMatched(Exception):
    """The selection is empty or names what is not there; carries the answer."""

    def __init__(self, document: Document) -> None:
        super().__init__("nothing matched")
        self.document = document


class Selection:
    """Chooses among the entries of one engine, and says how they are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reports = Reports(engine)

    def of(self, selector: Selector) -> list[Entry]:
        """The entries in the order of the file. Raises NothingMatched."""
        entries = list(self._engine.entries.values())
        if selector.selects_all:
            return entries
        chosen, unmatched = select(self._reports.items(entries), selector)
        if unmatched is not None:
            nothing = failure(PoolParamError, unmatched.message, unmatched.hint)
            raise NothingMatched(result([], [nothing], exit_code=NOTHING_MATCHED))
        names = {each["name"] for each in chosen}
        return [entry for entry in entries if entry.name in names]

    def items(self, selector: Selector) -> list[Document]:
        """The entries that are meant now, as every command prints them. Raises NothingMatched."""
        return self._reports.items(self.of(selector))
