"""One configuration file: its text, its value, and the place of each of its keys."""

from __future__ import annotations

import os
from collections.abc import Mapping

from poolctl.config.files.find import PYPROJECT, has_section
from poolctl.config.files.parsers import parse, positions
from poolctl.config.files.read_file import files_of, kind_of, read_text
from poolctl.config.values.problems import ParseError, Path, Place, Problem, Tree, dotted
from poolctl.config.values.secrets import masked_quotes

SECTION = ("tool", "poolctl")

# Alternative names of keys in files, by their normalised name.
SYNONYMS = {"bind": "listen", "scale": "workers"}


class Document:
    """A parsed file. `data` is the value of [tool.poolctl] in a pyproject.toml, else of the whole file."""

    def __init__(self, path: str, text: str | None = None) -> None:
        """Read and parse the file, or parse `text` in its place. Raises Problem."""
        self.path = path
        self.base_dir = os.path.dirname(path)
        self.kind = kind_of(path)
        self.text = read_text(path, is_configuration=True) if text is None else text
        try:
            data = parse(self.text, self.kind)
        except ParseError as error:
            place = Place(path, error.line, error.column)
            line = "".join(self.text.splitlines()[error.line - 1 : error.line])
            message, hint = masked_quotes(error.message, line), masked_quotes(error.hint, line)
            raise Problem(message, place=place, hint=hint) from None
        self.prefix: Path = ()
        if os.path.basename(path) == PYPROJECT:
            self.prefix = SECTION
            for part in SECTION:
                data = data.get(part) if isinstance(data, dict) else None
            if data is None:
                hint = "add [tool.poolctl], or name another file"
                raise Problem("there is no [tool.poolctl]", place=Place(path), hint=hint)
        self.data: Tree = {} if data is None else data
        self._positions: dict[Path, tuple[int, int]] | None = None

    def positions(self) -> dict[Path, tuple[int, int]]:
        """Line and column of every key; found by a second pass over the text on first use."""
        if self._positions is None:
            self._positions = positions(self.text, self.kind)
        return self._positions

    def exact(self, path: Path) -> Path | None:
        """The path with its keys as spelt in the file; None if the file does not have it."""
        known = self.positions()
        whole = (*self.prefix, *path)
        if whole in known:
            return whole
        for index, part in enumerate(whole):
            other = SYNONYMS.get(part) if isinstance(part, str) else None
            if other and (*whole[:index], other) in known:
                # The rest of the path belongs to the long form: it has no place of its own.
                return (*whole[:index], other)
        if "labels" in whole:
            # Dots in the name of a label may be tables of the file.
            start = whole.index("labels") + 1
            whole = (*whole[:start], *(part for name in whole[start:] for part in str(name).split(".")))
            return whole if whole in known else None
        return None

    def as_written(self, path: Path) -> Path:
        """The path where the file has a short form: `bind = ":80"` for a list of one table with that bind."""
        here, found = self.data, []
        for part in path:
            if (isinstance(here, (dict, str)) and part == 0) or isinstance(here, str):
                continue  # the value stands alone for a list of one, or for a table with this key
            found.append(part)
            inside = isinstance(here, dict) or (isinstance(here, list) and isinstance(part, int))
            try:
                here = here[part] if inside else None
            except LookupError:
                here = None
        return tuple(found)

    def place(self, path: Path) -> Place:
        """The place of a path, or of the nearest table around it; the key is the whole path."""
        known = self.positions()
        for length in range(len(path), -1, -1):
            found = self.exact(path[:length])
            if found is not None:
                return Place(self.path, *known[found], dotted((*found, *path[length:])))
        return Place(self.path, 1, 1, dotted((*self.prefix, *path)))


def read_documents(
    paths: list[str], texts: Mapping[str, str] | None = None
) -> tuple[list[Document], list[Problem]]:
    """The files (including files of directories) in order, and the problems of files that cannot be read or parsed.

    `texts` replace the contents of some files, by path.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            files = files_of(path)
        except Problem as problem:
            files = []
            problems.append(problem)
        for file in files:
            if file == path or os.path.basename(file) != PYPROJECT or has_section(file):
                try:
                    documents.append(Document(file, (texts or {}).get(file)))
                except Problem as problem:
                    problems.append(problem)
    return documents, problems
