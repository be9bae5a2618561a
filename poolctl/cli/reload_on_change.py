"""Watch mode: reloads whenever the configuration or the code changes.

A change is applied once writing has paused; a broken configuration is only reported.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from time import monotonic, sleep
from typing import TypeVar

from poolctl.cli.options import Selection
from poolctl.cli.outcome import Failure, Outcome, error
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.render import abbreviated_list, printable, relative_to_cwd
from poolctl.cli.supervisor_requests import Request, ask_for
from poolctl.config import directory_of
from poolctl.config.files.read_file import SUFFIXES
from poolctl.control.answers import ReloadResult, Result
from poolctl.control.client import Client
from poolctl.control.server_answers import ServerDetails, ShowResult
from poolctl.errors import ControlError
from poolctl.exit_codes import FAILED
from poolctl.json_form import Table
from poolctl.logs.log_tail import ENTRIES, DirectoryWatch

# A change is complete after this time without writes: editors, checkouts and deployments write many files.
QUIET_SECONDS = 0.15
# A change that does not end is applied after this time.
MAX_SECONDS = 3.0
_SHOWN_FILES = 3
_POLL = 'watch = { poll = "1s" }'
# During development the error page of the new code is more useful than the old code.
_WITHOUT_CHECK = {"check": False}
# A change of code replaces the processes of servers in these states, and restarts servers that exited by themselves;
# other servers use the new code when they start.
_ALIVE = ("running", "starting", "backoff", "draining", "failed")

Answer = TypeVar("Answer", bound=Result)


class PoolWatcher:
    """Applies changes to the running pool; `say` is called with a line about changed code before it is applied."""

    def __init__(self, request: Request, pool: PoolRef, say: Callable[[str], None], since: float) -> None:
        """Start watching. Only code that is saved after `since`, a Unix time, makes a server restart.

        Raises Failure if files cannot be watched, NoSupervisor if the pool does not run.
        """
        self._since = since
        self._request = request
        self._pool = pool
        self._say = say
        self._missed: Changed = {}
        self._signalled: set[str] = set()  # the servers with a reload_signal
        self._files = [*(Client(pool.socket).ping().files or pool.files)]
        self._watch: DirectoryWatch | PolledDirectories | None = None
        self._poll_seconds: float | None = None
        self._sources = WatchSet(self._files, ())
        # Files may have changed while the pool started.
        self._is_late = self._refresh().changed is not None
        with suppress(OSError):  # a lock by which the supervisor knows that changes are about to be applied
            self._lock = os.open(self._pool.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def apply_changes(
        self, over: Callable[[], bool] = lambda: False, *, now: bool = False
    ) -> Iterator[Result]:
        """Wait for changes, apply each and yield its result, until the pool ends or `over` returns true.

        With `now` the configuration is reloaded first.
        """
        if now or self._is_late:
            yield from self._apply_configuration()
        yield from self._restart({})
        while True:
            watch = self._current_watch()
            watch.wait(None)
            paths = self._wait_until_quiet(watch)
            if over() or not os.path.exists(self._pool.socket):
                return
            yield from self._apply(paths)

    def _wait_until_quiet(self, watch: DirectoryWatch | PolledDirectories) -> set[str] | None:
        """Wait until writing pauses, or MAX_SECONDS; returns the changed paths, None if the kernel lost events."""
        deadline = monotonic() + MAX_SECONDS
        paths: set[str] | None = set()
        while True:
            more = watch.changed()
            paths = None if more is None or paths is None else paths | more
            if not watch.wait(QUIET_SECONDS) or monotonic() > deadline:
                return paths

    def _apply(self, paths: set[str] | None) -> Iterator[Result]:
        replaced: set[str] = set()
        if self._sources.detect_configuration_change():
            replaced = yield from self._apply_configuration()
        changed = self._sources.changed_servers(paths) | self._sources.servers_with_replaced_paths()
        yield from self._restart({name: files for name, files in changed.items() if name not in replaced})
        if any(os.path.isdir(path) for path in paths or ()):
            self._refresh()
            yield from self._restart({})

    def _apply_configuration(self) -> Generator[Result, None, set[str]]:
        """Reload the configuration and yield the result; returns the names of servers that were started or replaced."""
        result = self._ask(ReloadResult, "reload", {"dry_run": False, **_WITHOUT_CHECK})
        self._refresh()
        yield result
        return {change.name for change in result.changes or () if change.change in ("add", "restart")}

    def _restart(self, changed: Changed) -> Iterator[Result]:
        """Restart the servers among `changed` that run or have ended by themselves.

        Yields the supervisor's answer to each restart.

        Also restart servers after changes in directories that were not watched yet, and therefore caused no event.
        """
        while changed := {**self._missed, **changed}:
            self._missed = {}
            listed = self._ask(Result, "list", {}, [*changed])
            affected = [
                item.name
                for item in listed.items
                if item.state in _ALIVE or (item.ended and not item.on_demand)
            ]
            if affected:
                # Servers with a reload_signal reload the changed files themselves.
                reloading = [name for name in affected if name in self._signalled]
                replaced = [name for name in affected if name not in self._signalled]
                for names, what in ((replaced, "restarting"), (reloading, "reloading")):
                    for line in _change_lines({name: changed[name] for name in names}, what):
                        self._say(line)
                if replaced:
                    yield self._ask(Result, "restart", {"wait": True, **_WITHOUT_CHECK}, replaced)
                if reloading:
                    yield self._ask(ReloadResult, "reload", {"dry_run": False, **_WITHOUT_CHECK}, reloading)
                self._refresh()
            changed = {}

    def _refresh(self) -> ShowResult:
        """Ask the supervisor for its servers, watch their current files and directories, and return the answer."""
        shown = self._ask(ShowResult, "show", {})
        if shown.items or not shown.errors:  # else the supervisor has not answered
            self._sources = WatchSet(self._files, shown.items, self._sources)
            self._signalled = {item.name for item in shown.items if item.config.get("reload_signal")}
        watch = self._current_watch()
        new: list[str] = []
        try:
            for directory in dict.fromkeys([*self._sources.directories(), self._pool.directory]):
                if _add_if_new(watch, directory):
                    new.append(directory)
            for directory in dict.fromkeys(self._sources.directories_of_links()):
                _add_if_new(watch, directory, ENTRIES)
        except OSError as error:
            hint = f"raise the limit: sysctl fs.inotify.max_user_watches=524288; or write {_POLL}"
            message = f"too many directories to watch: {error.filename} and those after it"
            raise Failure(Outcome.failed(FAILED, message, hint)) from None
        # Code saved in a directory not watched yet, while a worker was starting.
        self._missed |= self._sources.newer_than_workers(new, self._since)
        return shown

    def _current_watch(self) -> DirectoryWatch | PolledDirectories:
        """The watch that the servers' configuration calls for: polling, or inotify. Raises Failure without inotify."""
        poll_seconds = self._sources.poll_seconds
        if self._watch is None or poll_seconds != self._poll_seconds:
            if self._watch is not None:
                self._watch.close()
            self._watch = _inotify_watch() if poll_seconds is None else PolledDirectories(poll_seconds)
            self._poll_seconds = poll_seconds
        return self._watch

    def _ask(
        self, kind: type[Answer], verb: str, options: dict[str, object], names: list[str] | None = None
    ) -> Answer:
        # Of the command's options, a restart uses only `wait`, a reload all.
        kept = {
            key: value for key, value in self._request.options.items() if verb == "reload" or key == "wait"
        }
        try:
            request = replace(
                self._request, verb=verb, selection=Selection(targets=names), options={**kept, **options}
            )
            return ask_for(kind, request, self._pool)
        except ControlError as failure:
            code = failure.exit_code
            return kind(errors=(error(code, failure.message, failure.hint),), exit_code=code)


def _inotify_watch() -> DirectoryWatch:
    try:
        return DirectoryWatch(permissions=False)
    except (OSError, AttributeError) as error:
        hint = f"watching needs inotify(7), a feature of Linux, or {_POLL}"
        raise Failure(Outcome.failed(FAILED, f"cannot watch: {error}", hint)) from None


def _add_if_new(watch: DirectoryWatch | PolledDirectories, directory: str, *changes: int) -> bool:
    """Watch the directory if it exists; returns whether it was added. Raises OSError if there are too many."""
    try:
        return watch.add_if_new(directory, *changes)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            error.filename = directory
            raise
    return False


class PolledDirectories:
    """Finds changes in directories by listing them every `interval_seconds`.

    Some file systems do not report changes by other machines: NFS, 9p, vboxsf, shared folders of Docker Desktop.
    """

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._entries: dict[str, dict[str, Stamp]] = {}
        self._shallow: set[str] = set()  # directories in which writes to files are ignored
        self._changed: set[str] = set()

    def add_if_new(self, directory: str, changes: int = 0) -> bool:
        """Poll this directory, too; returns whether it was added. With ENTRIES, writes to files are ignored."""
        is_new = directory not in self._entries
        if is_new and changes == ENTRIES:
            self._shallow.add(directory)
        elif directory in self._shallow and changes != ENTRIES:
            self._shallow.remove(directory)
            is_new = True
        if is_new:
            self._entries[directory] = self._look_at(directory)
        return is_new

    def wait(self, seconds: float | None) -> bool:
        """Block until something has changed, or for that long; returns whether something has."""
        deadline = math.inf if seconds is None else monotonic() + seconds
        while not self._changed and (left_seconds := deadline - monotonic()) > 0:
            sleep(min(self._interval_seconds, left_seconds))
            for directory, before in self._entries.items():
                now = self._entries[directory] = self._look_at(directory)
                names = {name for name, _ in before.items() ^ now.items()}
                self._changed |= {os.path.join(directory, name) for name in names}
        return bool(self._changed)

    def changed(self) -> set[str]:
        """The paths changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def close(self) -> None:
        """Forget the directories."""
        self._entries = {}

    def _look_at(self, directory: str) -> dict[str, Stamp]:
        is_shallow = directory in self._shallow
        try:
            with os.scandir(directory) as entries:
                return {
                    entry.name: (entry.inode(), 0, 0) if is_shallow else _stamp(entry.path)
                    for entry in entries
                }
        except OSError:
            return {}


# Directories without code of the application.
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
CODE = ".py"
# The file name extensions of scripts in a command. Other files in a command may be output files.
SCRIPTS = (CODE, ".sh", ".js", ".mjs", ".cjs", ".ts", ".rb", ".pl", ".php", ".lua")
Stamp = tuple[int, int, int] | None
# The changed files of each server, by name; empty if unknown.
Changed = dict[str, list[str]]


class WatchSet:
    """The files to watch for a pool and its servers, and their state at the last check.

    `before` is the previous WatchSet: a file in both keeps the state recorded there, so that no change is missed.
    """

    def __init__(
        self, files: Sequence[str], items: Sequence[ServerDetails], before: WatchSet | None = None
    ) -> None:
        # Servers by the directory of their code, and by the scripts in their commands.
        self._code: dict[str, list[str]] = {}
        self._scripts: dict[str, list[str]] = {}
        # Patterns by server name, and the directories above the files they may match.
        self._included: dict[str, list[re.Pattern[str]]] = {}
        self._excluded: dict[str, list[re.Pattern[str]]] = {}
        self._tops: list[str] = []
        # Servers by path, to detect that a link or directory on the path was replaced.
        self._paths: dict[str, list[str]] = {}
        polls = [(item.config.get("watch") or {}).get("poll") for item in items]
        self.poll_seconds: float | None = min(filter(None, polls), default=None)
        self._started_at = {
            item.name: min(times)
            for item in items
            if (times := [worker.placed_at for worker in item.worker_list if worker.placed_at is not None])
        }
        referenced: list[str] = []
        links_to_code = cache(_links_to_code)  # servers often share a directory, and it may be large
        for item in items:
            config = item.config
            referenced += _referenced_files(config)
            for script in _scripts(config):
                self._scripts.setdefault(script, []).append(item.name)
            paths = [*_scripts(config, os.path.abspath)]
            watch = config.get("watch") or {}
            self._excluded[item.name] = [_expression(pattern) for pattern in watch.get("exclude") or ()]
            if directory := _code_directory(config):
                paths.append(directory)
                code_directory = os.path.realpath(directory)
                if os.path.isfile(archive := _existing_part(code_directory)):
                    self._scripts.setdefault(archive, []).append(item.name)
                else:
                    paths += self._add_code(item.name, code_directory, links_to_code)
            if not config.get("job"):
                patterns = watch.get("include") or ()
                self._included[item.name] = [_expression(pattern) for pattern in patterns]
                include_directories = [_split_pattern(pattern)[0] for pattern in patterns]
                self._tops += map(os.path.realpath, include_directories)
                paths += include_directories
            for path in dict.fromkeys(paths):
                if not _matches(self._excluded[item.name], [path, _resolved_parent_path(path)]):
                    self._paths.setdefault(path, []).append(item.name)
        # Servers without configured env files may read one that does not exist yet.
        env_files = [os.path.join(directory_of(file), ".env") for file in files]
        self._watched_files = list(dict.fromkeys([*files, *env_files, *referenced]))
        self._stamps: dict[str, Stamp] = self._file_stamps()
        self._identities = {path: _identity(path) for path in self._paths}
        if before is not None:
            self._copy_state(before)

    def _add_code(self, name: str, top: str, links_to_code: Callable[[str], list[str]]) -> list[str]:
        """Add the server's directory of code, and the code behind its links, once each; returns the links.

        Excluded directories are skipped. A link to a directory above adds nothing.
        """
        links: list[str] = []
        seen = {_device_and_inode(top)}
        pending = [top]
        while pending:
            directory = pending.pop()
            self._code.setdefault(directory, []).append(name)
            for link in links_to_code(directory):
                links.append(link)
                target = os.path.realpath(link)
                identity = _device_and_inode(target)
                is_above = f"{directory}/".startswith(f"{target.rstrip('/')}/")
                if (
                    identity in seen
                    or is_above
                    or _matches(self._excluded[name], [_resolved_parent_path(link), target])
                ):
                    continue
                seen.add(identity)
                if os.path.isdir(target):
                    pending.append(target)
                else:
                    self._scripts.setdefault(target, []).append(name)
        return links

    def _copy_state(self, before: WatchSet) -> None:
        self._identities |= {
            path: before._identities[path] for path in self._paths if path in before._identities
        }
        for path in [path for path in self._stamps if path not in before._stamps]:
            if os.path.dirname(path) in before._watched_files:
                del self._stamps[path]
        for path, stamp in before._stamps.items():
            if path in self._stamps or os.path.dirname(path) in self._watched_files:
                self._stamps[path] = stamp

    def directories(self) -> Iterator[str]:
        """Every directory in which a change may be relevant."""
        for path in self._watched_files:
            for location in {path, os.path.realpath(path)}:
                if os.path.isdir(location):
                    yield location
                yield os.path.dirname(location)
        yield from map(os.path.dirname, self._scripts)
        for top in dict.fromkeys([*self._code, *self._tops]):
            yield from code_directories(top)

    def directories_of_links(self) -> Iterator[str]:
        """Every directory with an entry that one of the paths depends on."""
        for path in [*self._watched_files, *self._paths]:
            yield from map(os.path.dirname, _entries_on_path(path))

    def servers_with_replaced_paths(self) -> Changed:
        """Map each server to its existing paths that lead elsewhere since the last check."""
        replaced: Changed = {}
        for path, names in self._paths.items():
            now = _identity(path)
            if now is not None and now != self._identities[path]:
                self._identities[path] = now
                for name in names:
                    replaced.setdefault(name, []).append(path)
        return replaced

    def detect_configuration_change(self) -> bool:
        """Whether the configuration or a referenced file has changed since the last check."""
        before, self._stamps = self._stamps, self._file_stamps()
        return before != self._stamps

    def changed_servers(self, paths: Iterable[str] | None) -> Changed:
        """Map each affected server to the `paths` it uses; if `paths` is None, map every watched server to []."""
        if paths is None:
            including = [name for name, patterns in self._included.items() if patterns]
            watched = (*self._code.values(), *self._scripts.values(), including)
            return {name: [] for names in watched for name in names}
        changed: Changed = {}
        for path in sorted(paths):
            places = {_resolved_parent_path(path)}
            if not (os.path.islink(path) and os.path.isdir(path)):  # in its directory nothing has changed
                places.add(os.path.realpath(path))
            for name in dict.fromkeys(self._servers_of(path, places)):
                if not _matches(self._excluded[name], places):
                    changed.setdefault(name, []).append(path)
        return changed

    def _servers_of(self, path: str, places: Iterable[str]) -> Iterator[str]:
        is_code = _is_code(path) or _directory_holds_code(path)
        for place in places:
            yield from self._scripts.get(place, ())
            for top, names in self._code.items() if is_code else ():
                if place.startswith(top.rstrip("/") + "/"):
                    yield from names
        yield from (name for name, patterns in self._included.items() if _matches(patterns, places))

    def newer_than_workers(self, directories: Iterable[str], since: float) -> Changed:
        """The servers with files in these directories that are newer than `since` and than the server's workers."""
        saved = {path: time for directory in directories for path, time in _file_change_times(directory)}
        newer = {
            name: [path for path in paths if saved[path] > max(since, self._started_at.get(name, math.inf))]
            for name, paths in self.changed_servers(saved).items()
        }
        return {name: paths for name, paths in newer.items() if paths}

    def _file_stamps(self) -> dict[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        for path in self._watched_files:
            names = sorted(os.listdir(path)) if os.path.isdir(path) else ()
            inside = (name for name in names if name.lower().endswith((*SUFFIXES,)))
            for file in (path, *(os.path.join(path, name) for name in inside)):
                stamps[file] = _stamp(file)
        return stamps


def _referenced_files(config: Table) -> Iterator[str]:
    env_file = config.get("env_file") or ()
    for entry in [env_file] if isinstance(env_file, (str, dict)) else env_file:
        yield entry["path"] if isinstance(entry, dict) else entry
    tls = config.get("tls")
    if isinstance(tls, dict):
        yield from (tls[key] for key in ("cert", "key", "ca") if tls.get(key))


def _file_change_times(directory: str) -> Iterator[tuple[str, float]]:
    """The files of the directory, with the time each was last written or renamed."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_file():
                    yield entry.path, entry.stat().st_ctime


def _change_lines(changed: Changed, what_follows: str) -> Iterator[str]:
    """Lines such as `web, api: main.py changed, restarting`; servers with the same changed files share a line."""
    names_of: dict[tuple[str, ...], list[str]] = {}
    for name, files in changed.items():
        names_of.setdefault(tuple(files), []).append(name)
    for paths, names in names_of.items():
        what = abbreviated_list([*map(relative_to_cwd, paths)], _SHOWN_FILES, "files") or "code"
        yield printable(f"{', '.join(names)}: {what} changed, {what_follows}")


def _split_pattern(pattern: str) -> tuple[str, list[str]]:
    """Split a file pattern into a directory, and the list of the parts after the directory.

    The list begins with the first part that has a wildcard, or with the last part if no part has a wildcard.
    """
    parts = pattern.split("/")
    first = next((at for at, part in enumerate(parts) if "*" in part or "?" in part), len(parts) - 1)
    return "/".join(parts[:first]) or "/", parts[first:]


def _expression(pattern: str) -> re.Pattern[str]:
    """A file pattern as a regular expression for the matching paths and all paths below them."""
    top, parts = _split_pattern(pattern)
    text = re.escape(os.path.realpath(top).rstrip("/"))
    for part in parts:
        if part == "**":
            text += "(?:/[^/]+)*"
        else:
            text += "/" + re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.compile(f"{text}(?:/.*)?")


def _matches(patterns: Iterable[re.Pattern[str]], places: Iterable[str]) -> bool:
    return any(pattern.fullmatch(place) for pattern in patterns for place in places)


def _code_directory(config: Table) -> str:
    """The directory in which a changed `*.py` file restarts the server; "" if there is none.

    It is `app_dir` for an application, and the working directory (except "/") for a command that runs Python. Jobs are
    not restarted, and other commands, such as a database, do not use Python code.
    """
    if not config.get("command"):
        return str(config.get("app_dir") or "")
    directory = str(config.get("cwd") or "")
    return directory if directory != "/" and not config.get("job") and _is_python_command(config) else ""


def _is_python_command(config: Table) -> bool:
    """Whether the command runs Python: an interpreter, a script, or a program written in Python, such as celery."""
    if any(path.endswith(CODE) for path in _scripts(config)):
        return True
    word = str(config["command"][0])
    environment = os.path.dirname(config.get("python") or "")
    path = f"{environment}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    path = (config.get("env") or {}).get("PATH") or path
    program = shutil.which(os.path.join(config.get("cwd") or "", word) if "/" in word else word, path=path)
    if program is None or os.path.basename(program).startswith("python"):
        return program is not None
    try:
        with open(program, "rb") as file:
            first = file.readline(256)
    except OSError:
        return False
    return first.startswith(b"#!") and b"python" in first


def _scripts(config: Table, resolve: Callable[[str], str] = os.path.realpath) -> Iterator[str]:
    """The resolved paths of scripts in the server's command, if they are below its working directory.

    The program itself counts as a script if it is a path. Jobs are not restarted, so their scripts do not matter.
    """
    if not config.get("command") or config.get("job"):
        return
    top = resolve(str(config.get("cwd") or ""))
    for at, word in enumerate(config["command"]):
        path = resolve(os.path.join(top, str(word)))
        named = (at == 0 and "/" in str(word)) or path.endswith(SCRIPTS)
        if named and path.startswith(top.rstrip("/") + "/"):
            yield path


# The kernel's limit (path_resolution(7)).
_MAX_LINKS = 40


def _entries_on_path(path: str) -> Iterator[str]:
    """The symbolic links on the way to the path, and its target, all in real directories."""
    directory, parts, links = "/", path.split("/")[::-1], 0
    while parts and links <= _MAX_LINKS:
        part = parts.pop()
        if part == "..":
            directory = os.path.dirname(directory)
        elif part not in ("", "."):
            entry = os.path.join(directory, part)
            try:
                target = os.readlink(entry)
            except OSError:
                directory = entry
                continue
            yield entry
            links += 1
            directory = "/" if target.startswith("/") else directory
            parts += target.split("/")[::-1]
    yield directory


def _resolved_parent_path(path: str) -> str:
    """The path with its directory resolved; a link itself is not followed."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _identity(path: str) -> tuple[str, Stamp] | None:
    """The identity of the file or directory to which the path leads; None if it does not exist."""
    stamp = _stamp(path)
    return None if stamp is None else (os.path.realpath(path), stamp if os.path.isdir(path) else None)


def _existing_part(path: str) -> str:
    """The path, or its nearest existing parent."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _links_to_code(top: str) -> list[str]:
    """The symbolic links below the directory that are code, or lead to a directory with modules."""
    links: list[str] = []
    for directory in code_directories(top):
        with suppress(OSError), os.scandir(directory) as entries:
            links += (
                entry.path
                for entry in entries
                if entry.is_symlink()
                and (_is_code(entry.path) or (entry.is_dir() and _is_package(entry.path)))
            )
    return links


def _is_package(directory: str) -> bool:
    """Whether modules lie in the directory itself: a link to data, or to a whole disk, is not followed."""
    with suppress(OSError):
        return _may_hold_code(directory) and any(name.endswith(CODE) for name in os.listdir(directory))
    return False


def _device_and_inode(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    # The entries of a directory are checked one by one.
    return (
        (status.st_ino, 0, 0) if os.path.isdir(path) else (status.st_ino, status.st_mtime_ns, status.st_size)
    )


def _is_code(path: str) -> bool:
    name = os.path.basename(path)
    return name.endswith(CODE) and not name.startswith(".")


def _directory_holds_code(path: str) -> bool:
    return (
        os.path.isdir(path)
        and _may_hold_code(path)
        and any(_is_code(name) for directory in code_directories(path) for name in os.listdir(directory))
    )


def code_directories(top: str) -> Iterator[str]:
    """The directory and its subdirectories that may hold code, except hidden ones and virtual environments."""
    for directory, names, _ in os.walk(top):
        names[:] = [name for name in names if _may_hold_code(os.path.join(directory, name))]
        yield directory


def _may_hold_code(directory: str) -> bool:
    name = os.path.basename(directory)
    hidden = name.startswith(".") or name in SKIPPED
    return not hidden and not os.path.exists(os.path.join(directory, "pyvenv.cfg"))
