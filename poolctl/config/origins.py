"""Where the value of a server's key comes from: its own table, an overriding file's, or the defaults."""

from __future__ import annotations

from poolctl.config.document import Document, Path
from poolctl.config.entry import Entry
from poolctl.config.problems import Place


class Origins:
    """Finds the places of the values of a pool's servers. Two of them are equal: they say nothing of a server."""

    def __init__(self, documents: list[Document], entries: list[Entry]) -> None:
        self.documents = documents
        self._entries = {entry.name: entry for entry in reversed(entries)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origins)

    __hash__ = None  # type: ignore[assignment]

    def place(self, entry: Entry | str, path: Path) -> Place:
        """The place of a key of a server; of what is not written anywhere, the server's own table."""
        entry = self._entries[entry] if isinstance(entry, str) else entry
        for length in range(len(path), 0, -1):
            found = self._written(entry, path[:length])
            if found is not None:
                document, whole = found
                return document.place((*whole, *path[length:]))
        document, table = entry.parts[0]
        return document.place((*table, *path))

    def of(self, name: str) -> dict[str, str]:
        """`{"http.loop": "/etc/pool.toml:7", …}` for every key that a file gives to the server."""
        found: dict[str, str] = {}
        entry = self._entries.get(name)
        if entry is None:
            return found
        sources: list[tuple[Document, Path]] = [(document, ("defaults",)) for document in self.documents]
        for document, table in [*sources, *entry.parts]:
            whole = (*document.prefix, *table)
            for path, (line, _) in document.positions().items():
                rest = path[len(whole) :]
                if rest and path[: len(whole)] == whole and all(isinstance(part, str) for part in rest):
                    found[".".join(str(part) for part in self._key(rest))] = f"{document.path}:{line}"
        return found

    def _key(self, path: Path) -> Path:
        return ({"listen": "bind", "workers": "scale"}.get(str(path[0]), path[0]), *path[1:])

    def _written(self, entry: Entry, path: Path) -> tuple[Document, Path] | None:
        for document, table in reversed(entry.parts):
            if document.exact((*table, *path)) is not None:
                return document, (*table, *path)
        for document in reversed(self.documents):
            if document.exact(("defaults", *path)) is not None:
                return document, ("defaults", *path)
        return None
