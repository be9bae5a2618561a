"""Where the value of a server's key comes from: its own table, an overriding file's, or the defaults."""

from __future__ import annotations

from poolctl.config.files.assemble import ServerTable
from poolctl.config.files.document import SYNONYMS, Document
from poolctl.config.model.problems import Path, Place

LONG_FORMS = {written: key for key, written in SYNONYMS.items()}


class Origins:
    """Finds the places of the values of a pool's servers. All are equal, so that servers with equal keys are."""

    def __init__(self, documents: list[Document], entries: list[ServerTable]) -> None:
        self.documents = documents
        self._entries = {entry.name: entry for entry in reversed(entries)}
        self._by_table: dict[str, dict[Path, list[tuple[Path, int]]]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origins)

    __hash__ = None  # type: ignore[assignment]

    def place(self, entry: ServerTable | str, path: Path) -> Place:
        """The place of a key of a server; its table's for a key that is not written anywhere."""
        entry = self._entries[entry] if isinstance(entry, str) else entry
        for length in range(len(path), 0, -1):
            found = self._written(entry, path[:length])
            if found is not None:
                document, whole = found
                return document.place((*whole, *path[length:]))
        document, table = entry.parts[0]
        return document.place((*table, *path))

    def of_table(self, path: Path) -> Place:
        """The place of a key that belongs to no server; `path` begins with its table."""
        for length in range(len(path), 0, -1):
            for document in reversed(self.documents):
                if document.exact(path[:length]) is not None:
                    return document.place(path)
        return self.documents[0].place(path)

    def of(self, name: str) -> dict[str, str]:
        """`{"http.loop": "/etc/pool.toml:7", …}` for every key that a file gives to the server."""
        found: dict[str, str] = {}
        entry = self._entries.get(name)
        if entry is None:
            return found
        tables = [each.data.get("defaults") for each in self.documents if isinstance(each.data, dict)]
        # The table [defaults.tls] is for servers that ask for it.
        asks = "tls" in entry.table or any(
            isinstance(each, dict) and each.get("tls") is True for each in tables
        )
        sources: list[tuple[Document, Path]] = [(document, ("defaults",)) for document in self.documents]
        for document, table in [*sources, *entry.parts]:
            for path, line in self._keys(document).get(table, ()):
                first = LONG_FORMS.get(str(path[0]), path[0])
                if table != ("defaults",) or first != "tls" or asks:
                    found[".".join(map(str, (first, *path[1:])))] = f"{document.path}:{line}"
        return found

    def _keys(self, document: Document) -> dict[Path, list[tuple[Path, int]]]:
        """The keys of each server's table of a file, with their lines; made once for all servers."""
        known = self._by_table.get(document.path)
        if known is None:
            known = self._by_table[document.path] = {}
            start = len(document.prefix)
            for path, (line, _) in document.positions().items():
                own = path[start:]
                size = 1 if own[:1] == ("defaults",) or isinstance(own[0] if own else "", int) else 2
                rest = own[size:]
                if rest and all(isinstance(part, str) for part in rest):
                    known.setdefault(own[:size], []).append((rest, line))
        return known

    def _written(self, entry: ServerTable, path: Path) -> tuple[Document, Path] | None:
        defaults: list[tuple[Document, Path]] = [(document, ("defaults",)) for document in self.documents]
        for document, table in reversed([*defaults, *entry.parts]):
            if document.exact((*table, *path)) is not None:
                return document, (*table, *path)
        return None
