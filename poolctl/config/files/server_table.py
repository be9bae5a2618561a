"""A server as the files have it, before it is validated."""

from __future__ import annotations

from typing import Any

from poolctl.config.files.document import Document
from poolctl.config.model.normalise import merged
from poolctl.config.model.problems import Path


class ServerTable:
    """The merged table of one server, and the tables of the files that it was merged from."""

    __slots__ = ("base_dir", "name", "parts", "table")

    def __init__(self, name: str, table: dict[str, Any], document: Document, path: Path) -> None:
        self.name = name
        self.table = table
        self.base_dir = document.base_dir
        self.parts: list[tuple[Document, Path]] = [(document, path)]

    def override(self, table: dict[str, Any], document: Document, path: Path) -> None:
        """Let a later file's table win, key by key."""
        self.table = merged(self.table, table)
        self.parts.append((document, path))
