"""Changing the files of a pool: in memory, checked, then written; all other text stays as it is.

Every change is made in the file that defines the key or server. A file is cut into its servers, and only the text of a
server that changes is given to the library of its format; a file that cannot be cut, such as one TOML list in brackets,
is given to it as a whole. Each new text is read back: it has to say what was meant and nothing else.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate

from poolctl.config.configuration import Configuration
from poolctl.config.edit.file_changes import REMOVED, Changes, lines_of, list_at
from poolctl.config.files.assemble import Assembly, ServerTable
from poolctl.config.files.document import Document, read_documents
from poolctl.config.files.parsers import parse
from poolctl.config.files.read_file import read_text
from poolctl.config.loader import load
from poolctl.config.values.problems import ParseError, Path, Problem, Tree
from poolctl.config.values.secrets import masked_file
from poolctl.errors import PoolValidateError, ServerError

MARK = b"\xef\xbb\xbf"


class FileChanged(Exception):
    """The file has changed since it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} has been changed by another process meanwhile")
        self.path = path


class Draft:
    """The files of a pool with changes that are not written yet. Blocks on the disk.

    Raises PoolValidateError when a file cannot be read or parsed, or cannot be changed in this way.
    """

    def __init__(self, files: Sequence[str], env: Mapping[str, str]) -> None:
        self.files = list(files)
        self.env = env
        self.documents, unreadable = read_documents(self.files)
        if unreadable:
            raise PoolValidateError("a configuration file cannot be read", unreadable)
        assembly = Assembly(env)
        for document in self.documents:
            assembly.add(document)
        self._entries = {entry.name.casefold(): entry for entry in reversed(assembly.entries)}
        self._defaults = assembly.defaults
        self._changes: dict[str, Changes] = {}
        self._texts: dict[str, str] | None = None
        self.written: list[str] = []
        self._asked: list[tuple[Callable[..., None], tuple[Tree, ...]]] = []

    def entry(self, name: str) -> ServerTable | None:
        """The server of that name, as the files have it."""
        return self._entries.get(name.casefold())

    def set(self, name: str, path: Path, value: Tree) -> None:
        """Give a key of a server a value, in the last file that has it. KeyError if there is no such server."""
        self._asked.append((Draft.set, (name, path, value)))
        document, table = self._home(self._known(name), path)
        self._set(document, table, _own_path(document, table, path) or path, value)

    def reset(self, name: str, key: str, default: Tree) -> None:
        """Give a key that a server has its default: taken out where that says the same and loses no comment."""
        self._asked.append((Draft.reset, (name, key, default)))
        entry = self._known(name)
        document, table = self._home(entry, (key,))
        own = _own_path(document, table, (key,)) or (key,)
        homes = [part for part in entry.parts if part[0].exact((*part[1], key)) is not None]
        alone = len(homes) == 1 and key not in self._defaults and not _has_comment(document, (*table, key))
        self._set(document, table, own, REMOVED if alone else default)

    def scale(self, name: str, workers: int) -> None:
        """Give a server a number of workers; one that may sleep, or grow, keeps that."""
        self._asked.append((Draft.scale, (name, workers)))
        document, table = self._home(self._known(name), ("scale",))
        own = _own_path(document, table, ("scale",))
        written = document.data
        for key in () if own is None else (*table, *own):
            written = written[key]
        if own is None or not isinstance(written, dict):
            self._set(document, table, own or ("workers",), workers)
            return
        if written.get("min") != 0:
            self._set(document, table, (*own, "min"), workers)
        self._set(document, table, (*own, "max"), workers)

    def remove(self, name: str) -> None:
        """Remove a server from every file that has it."""
        self._asked.append((Draft.remove, (name,)))
        for document, table in self._known(name).parts:
            self._of(document).removed.add(int(table[-1]))

    def add(self, table: dict[str, Tree]) -> None:
        """Put a server behind the others, in the last file that has some."""
        self._asked.append((Draft.add, (table,)))
        self._of(self.home_of_new()).added.append(table)

    def home_of_new(self) -> Document:
        """The file that add() writes to."""
        homes = [
            each
            for each in self.documents
            if isinstance(each.data, list) or each.exact(("server",)) is not None
        ]
        return (homes or self.documents)[-1]

    def again(self) -> Draft:
        """The same changes, to the files as they are now. Raises KeyError for a server that is gone."""
        draft = Draft(self.files, self.env)
        draft.written = self.written
        for verb, arguments in self._asked:
            verb(draft, *arguments)
        return draft

    def texts(self) -> dict[str, str]:
        """The new text of each file that changes."""
        if self._texts is None:
            changed = [each for each in self.documents if each.path in self._changes]
            found = {each.path: edited(each, self._changes[each.path]) for each in changed}
            self._texts = {each.path: found[each.path] for each in changed if found[each.path] != each.text}
        return self._texts

    def check(self) -> Configuration:
        """The configuration as it will be. PoolValidateError with every problem of it, at its place in the files."""
        config = load(self.files, self.env, self.texts())
        if config.problems:
            problems = [self._in_files(problem) for problem in config.problems]
            raise PoolValidateError("the changed configuration is invalid", problems)
        return config

    def _in_files(self, problem: ServerError) -> ServerError:
        """The problem with the line of the file as it is; that of the change itself where it is in no file yet."""
        for document in self.documents:
            if isinstance(problem, Problem) and problem.file == document.path in self.texts():
                before, after = document.text.splitlines(), self.texts()[document.path].splitlines()
                matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
                for old, new, size in matcher.get_matching_blocks():
                    if new < problem.line <= new + size:
                        problem.line += old - new
                        problem.place = problem.place._replace(line=problem.line)
                        break
        return problem

    def difference(self) -> str:
        """What changes, as a unified diff for people, its secrets masked."""
        lines: list[str] = []
        for document in self.documents:
            if (after := self.texts().get(document.path)) is not None:
                before, new = document.text.splitlines(keepends=True), after.splitlines(keepends=True)
                lines += difflib.unified_diff(before, new, document.path, document.path)
        return masked_file("".join(lines))

    def write(self) -> list[str]:
        """Write the changed files; their paths. FileChanged for a file that is not as it was read."""
        texts = self.texts()
        for document in self.documents:
            if document.path in texts:
                replace(document.path, document.text, texts[document.path])
                self.written = list(dict.fromkeys([*self.written, document.path]))
        return self.written

    def _known(self, name: str) -> ServerTable:
        entry = self.entry(name)
        if entry is None:
            raise KeyError(name)
        return entry

    def _home(self, entry: ServerTable, path: Path) -> tuple[Document, Path]:
        """The last file that has the key, else that has the table around it, else that has the server."""
        for length in range(len(path), 0, -1):
            for document, table in reversed(entry.parts):
                if document.exact((*table, *path[:length])) is not None:
                    return document, table
        return entry.parts[-1]

    def _set(self, document: Document, table: Path, path: Path, value: Tree) -> None:
        self._of(document).pairs.setdefault(int(table[-1]), []).append((path, value))

    def _of(self, document: Document) -> Changes:
        """The changes of a file, to which one is added."""
        self._texts = None
        return self._changes.setdefault(document.path, Changes())


def _own_path(document: Document, table: Path, path: Path) -> Path | None:
    """The path of a key within its server, as the file spells it; None if the file does not have it."""
    whole = document.exact((*table, *path))
    return None if whole is None else whole[len(document.prefix) + len(table) :]


def _has_comment(document: Document, path: Path) -> bool:
    """Whether a comment stands in the line of a key, or directly below, where YAML counts it to the key."""
    line, _ = document.positions()[document.exact(path) or path]
    lines = document.text.splitlines()[line - 1 : line + 1]
    return "#" in lines[0] or any(each.lstrip().startswith("#") for each in lines[1:])


def edited(document: Document, changes: Changes) -> str:
    """The text of a file with the changes made.

    Raises PoolValidateError if that cannot be done without changing something else.
    """
    text, kind = document.text, document.kind
    servers: Path = () if isinstance(document.data, list) else (*document.prefix, "server")
    crlf = 0 < text.count("\r\n") == text.count("\n")
    text = text.replace("\r\n", "\n") if crlf else text
    meant = _tree(parse(text, kind) or {})
    changes.apply(list_at(meant, servers))
    reason = "something else would change as well"
    edits: list[Callable[[], str]] = [partial(_json_text, document, text, servers, changes, meant)]
    if kind != "json":
        # tomlkit takes 30 ms, ruamel.yaml 20 ms: each is imported when a file of its format is changed.
        if kind == "toml":
            from poolctl.config.edit import toml_writer as library
        else:
            from poolctl.config.edit import yaml_writer as library  # type: ignore[no-redef]
        in_parts = partial(library.edited_in_parts, document, text, servers, changes)
        edits = [in_parts, partial(library.rewritten, text, servers, changes)]
    for edit in edits:
        try:
            found = edit()
            if _without_empty(parse(found, kind)) == _without_empty(meant):
                return found.replace("\n", "\r\n") if crlf else found
        except (ValueError, LookupError, ParseError) as error:
            reason = str(error)
    place = document.place((*servers[len(document.prefix) :], *changes.first()))
    message = f"this cannot be changed without touching more: {reason}"
    problem = Problem(message, place=place, hint="change it by hand, then poolctl reload")
    raise PoolValidateError("the file cannot be changed", [problem])


def _json_text(document: Document, text: str, servers: Path, changes: Changes, meant: Tree) -> str:
    """The text with the servers that change written again, each in its own layout, new ones in that of the last."""
    starts = [0, *accumulate(map(len, lines_of(text)))]
    begins: list[int] = []
    while (place := document.positions().get((*servers, len(begins)))) is not None:
        begins.append(starts[place[0] - 1] + place[1] - 1)
    kept = [index for index in range(len(begins)) if index not in changes.removed]
    if not begins:
        return _json_written(meant, text) + "\n" * text.endswith("\n")
    ends = [json.JSONDecoder().raw_decode(text, begin)[1] for begin in begins]
    margin = text[text.rfind("\n", 0, begins[-1]) + 1 : begins[-1]]
    margin = margin if margin.isspace() else ""
    before_first = text[text.rfind("[", 0, begins[0]) + 1 : begins[0]]
    gaps = ["", *(text[end:begin] for end, begin in zip(ends, begins[1:], strict=False))]
    gap = gaps[-1] or "," + (before_first or " ")
    new = ""
    for number, table in enumerate(list_at(meant, servers)):
        index = kept[number] if number < len(kept) else -1
        written = text[begins[index] : ends[index]]
        if index < 0 or index in changes.pairs:
            written = _json_written(table, written, margin)
        new += ("" if not number else gap if index < 0 else gaps[index]) + written
    head, tail = text[: begins[0]], text[ends[-1] :]
    return head + new + tail if new else head.rstrip() + tail.lstrip()


def _json_written(value: Tree, like: str, margin: str = "") -> str:
    """The value on one line, or on several with the indentation of the text `like`."""
    first = re.search(r"\n([ \t]*)", like)
    indent = (first[1].removeprefix(margin) or "  ") if first else None
    return json.dumps(value, ensure_ascii=False, indent=indent).replace("\n", f"\n{margin}")


def _tree(data: Tree) -> Tree:
    """A copy in which nothing is shared: a table that YAML's aliases repeat is changed in one place only."""
    if isinstance(data, dict):
        return {key: _tree(value) for key, value in data.items()}
    return [_tree(value) for value in data] if isinstance(data, list) else data


def _without_empty(data: Tree) -> Tree:
    """The same without empty tables and lists: with the last server the list of them may go, too."""
    if isinstance(data, dict):
        kept = {key: _without_empty(value) for key, value in data.items()}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    return [_without_empty(value) for value in data] if isinstance(data, list) else data


def replace(path: str, before: str, after: str) -> None:
    """Make `after` the text of the file whose text was `before`: whole or not at all; mode, owner and mark stay.

    A symbolic link stays one: its target is replaced. Blocks until the disk has it. Raises FileChanged, and
    OSError where the system refuses.
    """
    target = os.path.realpath(path)
    held = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Two replacements take turns; the second one then finds the file changed. Not every file system has locks.
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        mark = MARK if os.pread(held, len(MARK), 0) == MARK else b""
        directory, name = os.path.split(target)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".new", dir=directory)
        try:
            with open(descriptor, "wb") as file:
                _take_over(descriptor, os.fstat(held), target)
                file.write(mark + after.encode())
                file.flush()
                os.fsync(descriptor)
            if not _same(target, held, before):
                raise FileChanged(path)
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(directory)
    finally:
        os.close(held)


def _take_over(descriptor: int, status: os.stat_result, target: str) -> None:
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    # Access lists and labels, where the file system has them and allows it; only Linux has these functions.
    with contextlib.suppress(OSError, AttributeError):
        for attribute in os.listxattr(target):
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, attribute, os.getxattr(target, attribute))


def _same(target: str, held: int, before: str) -> bool:
    """Whether the file of that name is still the one that is held, with the text that was read."""
    try:
        return os.path.samestat(os.stat(target), os.fstat(held)) and read_text(target) == before
    except (OSError, Problem):
        return False


def _sync(directory: str) -> None:
    """The new name, too, survives a loss of power."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
