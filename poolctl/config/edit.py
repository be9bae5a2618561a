"""Changes the files of a pool: in memory, checked, then written. All other text stays as it is.

Every change is made in the file that defines the key or server. Only TOML files are written; changes to other files
are listed with their places, to be made by hand. If each server is a table with its own header, tomlkit gets only the
text of the changed servers. Otherwise, as for an inline list of servers, tomlkit gets the whole file. Each new text is
read back: it must contain exactly the intended change.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from poolctl.config.configuration import Configuration
from poolctl.config.files.assemble import Assembly, Document, ServerTable, nearest_source, read_documents
from poolctl.config.files.parsers import parse
from poolctl.config.files.read_file import read_text
from poolctl.config.loader import load
from poolctl.config.values.problems import KeyPath, Problem, Tree
from poolctl.config.values.secrets import masked_file_text
from poolctl.config.values.toml_text import escaped, json_text, key_text, table_text, value_text
from poolctl.errors import PoolValidateError, ServerError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
Pairs = list[tuple[KeyPath, Tree]]
# The value that stands for the removal of a key.
REMOVED = object()
_lines_of: Callable[[str], list[str]] = re.compile(r"[^\n]*\n|[^\n]+\Z").findall


class FileChanged(Exception):
    """The file has changed since it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} has been changed by another process meanwhile")
        self.path = path


class Draft:
    """The files of a pool with changes that are not written yet. Blocks on the disk.

    Raises PoolValidateError when a file cannot be read or parsed, or when a change cannot be made in a file.
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
        self._changes: dict[str, ServerListChanges] = {}
        self._texts: dict[str, str] | None = None
        self.written: list[str] = []
        self._history: list[tuple[Callable[..., None], tuple[Tree, ...]]] = []

    def entry(self, name: str) -> ServerTable | None:
        """The server of that name, ignoring case, as written in the files; None if no file has it."""
        return self._entries.get(name.casefold())

    def set(self, name: str, path: KeyPath, value: Tree) -> None:
        """Set a server's key at `path`.

        The last file that has the key is changed. If no file has it, the key is added to the last file with the table
        around it, and if there is no such table, to the last file with the server. Raises KeyError if no file has the
        server, as do `reset`, `scale` and `remove`.
        """
        self._history.append((Draft.set, (name, path, value)))
        document, table = self._source_to_change(self._existing(name), path)
        self._set(document, table, _spelled_path(document, table, path) or path, value)

    def reset(self, name: str, key: str, default: Tree) -> None:
        """Give a server's key the value `default`: delete it if that is enough and loses no comment, else set it."""
        self._history.append((Draft.reset, (name, key, default)))
        entry = self._existing(name)
        document, table = self._source_to_change(entry, (key,))
        path = _spelled_path(document, table, (key,)) or (key,)
        sources = [part for part in entry.parts if part[0].path_as_spelled((*part[1], key)) is not None]
        is_only = len(sources) == 1 and key not in self._defaults
        can_delete = is_only and not _line_has_comment(document, (*table, key))
        self._set(document, table, path, REMOVED if can_delete else default)

    def scale(self, name: str, workers: int) -> None:
        """Set a server's number of workers; a `scale.min` of 0 is kept, so that the server may still sleep."""
        self._history.append((Draft.scale, (name, workers)))
        document, table = self._source_to_change(self._existing(name), ("scale",))
        path = _spelled_path(document, table, ("scale",))
        written = document.data
        for key in () if path is None else (*table, *path):
            written = written[key]
        if path is None or not isinstance(written, dict):
            self._set(document, table, path or ("workers",), workers)
            return
        if written.get("min") != 0:
            self._set(document, table, (*path, "min"), workers)
        self._set(document, table, (*path, "max"), workers)

    def remove(self, name: str) -> None:
        """Remove a server from every file that has it."""
        self._history.append((Draft.remove, (name,)))
        for document, table in self._existing(name).parts:
            self._changes_of(document).removed.add(int(table[-1]))

    def add(self, table: dict[str, Tree]) -> None:
        """Add a server after the others, in the last file that has servers."""
        self._history.append((Draft.add, (table,)))
        self._changes_of(self.file_for_new_server()).added.append(table)

    def file_for_new_server(self) -> Document:
        """The file that `add` writes to: the last one that has servers, or else the last one."""
        with_servers = [
            document
            for document in self.documents
            if isinstance(document.data, list) or document.path_as_spelled(("server",)) is not None
        ]
        return (with_servers or self.documents)[-1]

    def rebase(self) -> Draft:
        """Apply the same changes to the current content of the files; returns a new draft.

        Raises KeyError if a server is gone.
        """
        draft = Draft(self.files, self.env)
        draft.written = self.written
        for verb, arguments in self._history:
            verb(draft, *arguments)
        return draft

    def manual_changes(self) -> list[Problem]:
        """The changes as instructions for a person, one for each key or server; empty if only TOML files change."""
        changed = self._changed()
        if all(document.kind == "toml" for document in changed):
            return []
        return [
            instruction
            for document in changed
            for instruction in _manual_change_instructions(document, self._changes[document.path])
        ]

    def texts(self) -> dict[str, str]:
        """The new text of each file that changes, by path. Raises PoolValidateError if one cannot be changed."""
        if self._texts is None:
            if problems := self.manual_changes():
                raise PoolValidateError("only TOML files are changed", problems)
            texts = [
                (document, edited(document, self._changes[document.path])) for document in self._changed()
            ]
            self._texts = {document.path: text for document, text in texts if text != document.text}
        return self._texts

    def _changed(self) -> list[Document]:
        return [document for document in self.documents if document.path in self._changes]

    def load_validated(self) -> Configuration:
        """Validate the changed files; returns their configuration. Raises PoolValidateError with every problem."""
        config = load(self.files, self.env, self.texts())
        if config.problems:
            problems = [self._line_number_in_current_file(problem) for problem in config.problems]
            raise PoolValidateError("the changed configuration is invalid", problems)
        return config

    def _line_number_in_current_file(self, problem: ServerError) -> ServerError:
        """Translate the problem's line number from the new text to the current file, if the line exists in both."""
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
        """The changes as a unified diff for display, with secrets masked."""
        lines: list[str] = []
        for document in self.documents:
            if (after := self.texts().get(document.path)) is not None:
                before, new = document.text.splitlines(keepends=True), after.splitlines(keepends=True)
                lines += difflib.unified_diff(before, new, document.path, document.path)
        return masked_file_text("".join(lines))

    def write(self) -> list[str]:
        """Write the changed files. Return the paths of all files written so far, also by drafts that `rebase` replaced.

        Raises FileChanged for a file modified since it was read, and OSError.
        """
        texts = self.texts()
        for document in self.documents:
            if document.path in texts:
                replace_file_content(document.path, document.text, texts[document.path])
                self.written = list(dict.fromkeys([*self.written, document.path]))
        return self.written

    def _existing(self, name: str) -> ServerTable:
        entry = self.entry(name)
        if entry is None:
            raise KeyError(name)
        return entry

    def _source_to_change(self, entry: ServerTable, path: KeyPath) -> tuple[Document, KeyPath]:
        """Return the file in which to change the key `path` of server `entry`, and the server's path in the file."""
        return nearest_source(entry.parts, path) or entry.parts[-1]

    def _set(self, document: Document, table: KeyPath, path: KeyPath, value: Tree) -> None:
        self._changes_of(document).pairs.setdefault(int(table[-1]), []).append((path, value))

    def _changes_of(self, document: Document) -> ServerListChanges:
        self._texts = None
        return self._changes.setdefault(document.path, ServerListChanges())


def _spelled_path(document: Document, table: KeyPath, path: KeyPath) -> KeyPath | None:
    """Return `path`, a key of the server at `table`, as spelled in the file; None if the file does not have the key."""
    whole = document.path_as_spelled((*table, *path))
    return None if whole is None else whole[len(document.prefix) + len(table) :]


def _line_has_comment(document: Document, path: KeyPath) -> bool:
    line, _ = document.positions()[document.path_as_spelled(path) or path]
    return "#" in document.text.splitlines()[line - 1]


def _manual_change_instructions(document: Document, changes: ServerListChanges) -> Iterator[Problem]:
    """The changes as instructions for a person: where to edit the file, and the text to write, with secrets masked."""
    servers: KeyPath = () if isinstance(document.data, list) else ("server",)
    for index, pairs in changes.pairs.items():
        table = copy.deepcopy(document.data if not servers else document.data["server"])[index]
        set_or_remove(table, pairs)
        column = document.place((*servers, index)).column
        margin = " " * (column - 1 if document.kind == "yaml" else 4)
        for key in dict.fromkeys(path[0] for path, _ in pairs):
            written = key in table and f"{margin}{_pair_text(document.kind, str(key), table[key])}"
            message = f"write this:\n{masked_file_text(written)}" if written else "remove this key"
            yield Problem(
                message, place=document.place((*servers, index, key)), name=str(table.get("name", ""))
            )
    for index in sorted(changes.removed):
        yield Problem("remove this server", place=document.place((*servers, index)))
    if changes.added:
        count = len(document.data if not servers else document.data.get("server") or [])
        added = masked_file_text(_new_servers_text(document, servers, changes.added, count))
        place = document.place((*servers, count - 1) if count else ())
        yield Problem(f"write this {'after the server' if count else 'into the file'}:\n{added}", place=place)


def _pair_text(kind: str, key: str, value: Tree) -> str:
    if kind == "toml":
        return f"{key_text(key)} = {value_text(value)}"
    return f"{key_text(key) if kind == 'yaml' else json_text(key)}: {json_text(value)}"  # JSON is YAML, too


def _new_servers_text(document: Document, servers: KeyPath, tables: list[dict[str, Tree]], count: int) -> str:
    """The text of the new servers (`tables`), in the style of a file that already has `count` servers."""
    if document.kind == "toml":
        head = f"[[{'.'.join(map(str, (*document.prefix, 'server')))}]]"
        return "\n".join(table_text(head, table) for table in tables).rstrip("\n")
    if not count and servers:
        return f"    {_pair_text(document.kind, 'server', tables)}"
    # In YAML a server is written on its own lines, like the server before it, or in brackets, as in JSON.
    line, column = document.positions()[(*servers, count - 1)] if count else (1, 1)
    before = document.text.splitlines()[line - 1][: column - 1] if count else ""
    if document.kind == "json" or before.strip() != "-":
        return "\n".join(f"    {json_text(table)}" for table in tables)
    lines = []
    for table in tables:
        pairs = [_pair_text("yaml", key, value) for key, value in table.items()]
        lines += [before + pairs[0], *(" " * len(before) + pair for pair in pairs[1:])]
    return "\n".join(lines)


def edited(document: Document, changes: ServerListChanges) -> str:
    """The text of a TOML file with the changes applied.

    Raises PoolValidateError if that is not possible without changing something else.
    """
    text, servers = document.text, (*document.prefix, "server")
    crlf = 0 < text.count("\r\n") == text.count("\n")
    text = text.replace("\r\n", "\n") if crlf else text
    meant = parse(text, "toml")
    changes.apply(ensure_list_at(meant, servers))
    reason = "something else would change as well"
    edits: list[Callable[[], str]] = [
        lambda: _edited_in_parts(document, text, servers, changes),
        lambda: _edited_as_whole(text, servers, changes),
    ]
    for edit in edits:
        try:
            new_text = edit()
            if _without_empty(parse(new_text, "toml")) == _without_empty(meant):
                return new_text.replace("\n", "\r\n") if crlf else new_text
        except (ValueError, LookupError) as error:
            reason = str(error)
    place = document.place(("server", *changes.first_changed_path()))
    message = f"this cannot be changed without touching more: {reason}"
    problem = Problem(message, place=place, hint="change it by hand, then poolctl reload")
    raise PoolValidateError("the file cannot be changed", [problem])


def _without_empty(data: Tree) -> Tree:
    """The data without empty tables and lists, for comparison: removing the last server may also remove its list."""
    if isinstance(data, dict):
        kept = {key: _without_empty(value) for key, value in data.items()}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    return [_without_empty(value) for value in data] if isinstance(data, list) else data


def replace_file_content(path: str, before: str, after: str) -> None:
    """Atomically replace the file's text `before` by `after`; mode, owner and byte order mark stay.

    A symbolic link stays: its target is replaced. Blocks until the text is on disk. Raises FileChanged if the file's
    text is no longer `before`, and OSError.
    """
    target = os.path.realpath(path)
    held = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Serialize replacements: the second one then detects that the file changed. Not every file system supports
        # locks.
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        mark = BYTE_ORDER_MARK if os.pread(held, len(BYTE_ORDER_MARK), 0) == BYTE_ORDER_MARK else b""
        directory, name = os.path.split(target)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".new", dir=directory)
        try:
            with open(descriptor, "wb") as file:
                _copy_mode_and_owner(descriptor, os.fstat(held), target)
                file.write(mark + after.encode())
                file.flush()
                os.fsync(descriptor)
            if not _is_file_unchanged(target, held, before):
                raise FileChanged(path)
            os.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(directory)
    finally:
        os.close(held)


def _copy_mode_and_owner(descriptor: int, status: os.stat_result, target: str) -> None:
    mine = os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    # Access lists and labels, where the file system has them and allows it; only Linux has these functions.
    with contextlib.suppress(OSError, AttributeError):
        for attribute in os.listxattr(target):
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, attribute, os.getxattr(target, attribute))


def _is_file_unchanged(target: str, held: int, before: str) -> bool:
    try:
        return os.path.samestat(os.stat(target), os.fstat(held)) and read_text(target) == before
    except (OSError, Problem):
        return False


def _sync(directory: str) -> None:
    """Flush a directory to disk (fsync), so that a new or renamed file survives a power failure. Ignores OSError."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class ServerListChanges:
    """The changes to a file: new values by server index (`pairs`), indexes of servers to remove, and servers to add."""

    def __init__(self) -> None:
        self.pairs: dict[int, Pairs] = {}
        self.removed: set[int] = set()
        self.added: list[dict[str, Tree]] = []

    def apply(self, servers: Tree, convert: Callable[[Tree], Tree] = lambda value: value) -> None:
        """Apply the changes to a parsed list of servers; `convert` makes new values into the parser's own objects."""
        for index, pairs in self.pairs.items():
            set_or_remove(servers[index], pairs, convert)
        for index in sorted(self.removed, reverse=True):
            del servers[index]
        for table in self.added:
            servers.append(convert(table))

    def first_changed_path(self) -> KeyPath:
        """Return the path of the first change, for an error message. The path begins with the index of a server.

        If a key changes, the path names the first changed key, such as `(2, "workers")`. If no key changes, the
        path names the first removed server, such as `(2,)`. If no server is removed either, the path is ().
        """
        for index, pairs in self.pairs.items():
            return (index, *pairs[0][0])
        return tuple(sorted(self.removed)[:1])


def set_or_remove(table: Tree, pairs: Pairs, convert: Callable[[Tree], Tree] = lambda value: value) -> None:
    """Set the keys at these paths, or remove those with the value REMOVED; create missing tables on the way."""
    for path, value in pairs:
        at = table
        for number, key in enumerate(path[:-1], 1):
            if at.get(key) is None:
                for inner in reversed(path[number:]):
                    value = {inner: value}
                path = path[:number]
                break
            at = at[key]
        if value is REMOVED:
            del at[path[-1]]
        else:
            at[path[-1]] = convert(value)


def ensure_list_at(data: Tree, servers: KeyPath) -> Tree:
    """The list of servers at the path `servers` of a parsed file; an empty list is inserted if it is missing."""
    for number, key in enumerate(servers, 1):
        if data.get(key) is None:
            data[key] = [] if number == len(servers) else {}
        data = data[key]
    return data


class ServerLines(NamedTuple):
    """The 0-based lines of a server: range(first, end), or with comments range(comments_start, comments_end)."""

    first: int
    end: int
    comments_start: int
    comments_end: int


class ServerLineBlocks:
    """The lines of a text, split into the servers that it defines.

    Raises ValueError unless each server is a table with its own header, one after another.
    """

    def __init__(self, text: str, positions: dict[KeyPath, tuple[int, int]], servers: KeyPath) -> None:
        self.lines = _lines_of(text)
        self._new = [*self.lines, ""]
        starts: list[int] = []
        while (place := positions.get((*servers, len(starts)))) is not None:
            starts.append(place[0] - 1)
        if servers in positions and not starts:
            raise ValueError("its servers are not one below the other")
        if not all(self.lines[first].lstrip().startswith("[[") for first in starts):
            raise ValueError("its servers are not tables with their own headers")
        limits: dict[int, int] = {}
        current = -1
        for path, (line, _) in sorted(positions.items(), key=lambda item: item[1][0]):
            rest = path[len(servers) :] if path[: len(servers)] == servers else ()
            owner = int(rest[0]) if rest else -1
            if owner != current:
                limits.setdefault(current, line - 1)
                current = owner
        self.servers = [
            self._lines_of_server(first, limits.get(number, len(self.lines)))
            for number, first in enumerate(starts)
        ]

    def _lines_of_server(self, first: int, limit: int) -> ServerLines:
        """The lines of the server that begins in line `first`; the next item begins in line `limit`.

        A comment directly above a server belongs to it, unless the file begins with that comment. A comment directly
        below belongs to it too, unless it is directly above the next item.
        """
        end = limit
        while end > first + 1 and (self._is_blank(end - 1) or self._is_comment(end - 1)):
            end -= 1
        following = end
        while following < limit and self._is_comment(following):
            following += 1
        below = following if following < limit or limit == len(self.lines) else end
        above = first
        while above > 0 and self._is_comment(above - 1):
            if self.lines[above - 1].lstrip().startswith(("#:", "#!")):
                break  # a directive, such as #:schema
            above -= 1
        return ServerLines(first, end, above or first, below)

    def _is_blank(self, at: int) -> bool:
        return 0 <= at < len(self.lines) and not self.lines[at].strip()

    def _is_comment(self, at: int) -> bool:
        return self.lines[at].lstrip().startswith("#")

    def change(self, changes: ServerListChanges, edit: Callable[[str, Pairs], str], added: str) -> str:
        """Apply the changes; returns the new text. `edit` changes a server's text; `added` is text to append."""
        for index, pairs in changes.pairs.items():
            part = self.servers[index]
            text = edit("".join(self.lines[part.first : part.end]), pairs)
            ends = self.lines[part.end - 1].endswith("\n")
            self._replace(part.first, part.end, text if ends else text.rstrip("\n"))
        for index in changes.removed:
            self._remove(self.servers[index])
        if added:
            at = self.servers[-1].comments_end if self.servers else len(self.lines)
            unended = at == len(self.lines) > 0 and not self.lines[-1].endswith("\n")
            follows = at < len(self.lines) and not self._is_blank(at)
            self._new[at] = "\n" * unended + "\n" * bool(at) + added + "\n" * follows + self._new[at]
        return "".join(self._new)

    def _replace(self, start: int, end: int, text: str = "") -> None:
        self._new[start:end] = [text] + [""] * (end - start - 1)

    def _remove(self, part: ServerLines) -> None:
        """Remove a server with its comments, and the empty lines that would be left over.

        Empty lines below it are removed if it follows an empty line or starts the file; empty lines above it, if it
        ends the file.
        """
        start, end = part.comments_start, part.comments_end
        if start == 0 or self._is_blank(start - 1):
            while self._is_blank(end):
                end += 1
        if end == len(self.lines):
            while self._is_blank(start - 1):
                start -= 1
        self._replace(start, end)


def without_added_blank_lines(text: str, changed: str) -> str:
    """Return `changed`, a version of `text` edited by tomlkit, without the empty lines that tomlkit added."""
    lines, after = _lines_of(text), _lines_of(changed)
    matcher = difflib.SequenceMatcher(None, lines, after, autojunk=False)
    for tag, start, end, new_start, new_end in reversed(matcher.get_opcodes()):
        if tag != "equal":
            lines[start:end] = [line for line in after[new_start:new_end] if line.strip()]
    return "".join(lines)


def _edited_in_parts(document: Document, text: str, servers: KeyPath, changes: ServerListChanges) -> str:
    """Return `text` with the changes made server by server. Raises ValueError if `text` cannot be split by server."""
    import tomlkit

    parts = ServerLineBlocks(text, document.positions(), servers)

    def edit(block: str, pairs: Pairs) -> str:
        parsed = tomlkit.parse(block)
        set_or_remove(ensure_list_at(parsed, servers)[0], pairs, _tomlkit_value)
        return without_added_blank_lines(block, parsed.as_string())

    head = f"[[{'.'.join(key_text(str(key)) for key in servers)}]]"
    return parts.change(changes, edit, "\n".join(table_text(head, table) for table in changes.added))


def _edited_as_whole(text: str, servers: KeyPath, changes: ServerListChanges) -> str:
    import tomlkit

    whole = tomlkit.parse(text)
    if whole.as_string() != text:
        raise ValueError("the tables of its servers are not together")
    changes.apply(ensure_list_at(whole, servers), _tomlkit_value)
    return whole.as_string()


def _tomlkit_value(value: Tree) -> Tree:
    import tomlkit

    return tomlkit.value(value_text(value))


def server_table(values: Mapping[str, Tree], *, is_limited: bool) -> dict[str, Tree]:
    """The `[[server]]` table of a configuration with these values, which have been resolved; escaped (see `escaped`).

    The default of `restart.limit` is left out unless the configuration has set a limit (`is_limited`): a limit in a
    table always ends the restarts, the default does not.
    """
    table: dict[str, Tree] = escaped(values)
    if not is_limited:
        del table["restart"]["limit"]
    return table
