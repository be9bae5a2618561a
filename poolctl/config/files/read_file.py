"""Finds and reads the files of a pool.

Files must be regular, UTF-8 and not too large; each failure is reported with its fix. This module also reads env
files (`NAME=value` lines, as written by shells, compose and systemd), and recognizes files of other tools, which
`poolctl import` converts.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from poolctl.errors import ServerError
from poolctl.private_directory import Trusted
from poolctl.safe_open import open_to_read

if TYPE_CHECKING:
    from poolctl.config.model.server_keys import ServerConfig
    from poolctl.config.model.server_tables import EnvFile
    from poolctl.config.values.problems import Problem, Tree

FILE_NAMES = ("pool.toml", "pool.yaml", "pool.yml", "pool.json")
PYPROJECT = "pyproject.toml"
PYPROJECT_LIMIT_BYTES = 4 * 1024 * 1024
SECTION = ("tool", "poolctl")  # of a pyproject.toml

_SECTION = rb"(?m)^[ \t]*\[{1,2}[ \t]*tool[ \t]*\.[ \t]*(?:\"poolctl\"|'poolctl'|poolctl)[ \t]*[.\]]"


# Two writes within one tick of the kernel's clock get the same time, so a time this recent is not reliable.
_TICK_NS = 50_000_000
# Inode, time of change, time of modification, size; None for a missing file.
Stamp = tuple[int, int, int, int] | None


class ConfigNotFound(Exception):
    """There is no configuration file; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}")
        self.message = message
        self.hint = hint


def find_config(
    paths: Sequence[str] = (), env: Mapping[str, str] | None = None, cwd: str | None = None
) -> list[str]:
    """Absolute paths of the configuration files, symbolic links unresolved; later files override earlier ones.

    `paths` (from -c) take precedence over $POOLCTL_CONFIG, and both over files in the working directory, or in the
    nearest one above it that has any (see `_directories_above`). Given paths need not exist, so that a running pool is
    found even if its file is gone. A directory stands for its files, including later ones. Raises
    ConfigNotFound if there is no file, if a given path is empty, or if the file above belongs to another user.
    """
    cwd = os.getcwd() if cwd is None else cwd
    env = os.environ if env is None else env
    given_paths = [os.fspath(path) for path in paths] or [
        path for path in [env.get("POOLCTL_CONFIG", "")] if path
    ]
    if given_paths:
        if "" in given_paths:
            raise ConfigNotFound("the configuration file's name is empty", "give -c FILE a path")
        return [os.path.normpath(os.path.join(cwd, path)) for path in given_paths]
    for directory in (cwd, *_directories_above(cwd, env)):
        if file := default_file(directory):
            if directory != cwd and not (is_own(directory, env) and is_own(file, env, safe=True)):
                hint = f"to use that of another user, name it: -c {file}"
                raise ConfigNotFound(f"no configuration file of your own in {cwd} or above", hint)
            return [file]
    hint = f"`poolctl init` writes a {FILE_NAMES[0]}; or name one with -c FILE or $POOLCTL_CONFIG"
    if similar_file := _near_miss(cwd):
        new_name = f"pool{os.path.splitext(similar_file)[1].lower()}"
        hint = f"there is {similar_file}: `poolctl -c {similar_file} …`, or rename it to {new_name}"
    raise ConfigNotFound(f"no configuration file in {cwd}", hint)


def _directories_above(cwd: str, env: Mapping[str, str]) -> list[str]:
    """The directories above `cwd`, nearest first, in which a configuration file is looked for.

    They end with a repository's root (`.git`), else below $HOME or at the file system's boundary. With $CI set, only a
    repository is searched: directories above a checkout belong to the machine.
    """
    directories: list[str] = []
    home, device = os.path.realpath(env.get("HOME") or "/"), _device(cwd)
    directory = cwd
    while not (is_top := os.path.lexists(os.path.join(directory, ".git"))):
        parent = os.path.dirname(directory)
        if parent in (directory, home) or _device(parent) != device:
            break
        directories.append(parent)
        directory = parent
    return directories if is_top or not env.get("CI") else []


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def is_own(path: str, env: Mapping[str, str], *, safe: bool = False) -> bool:
    """Whether a path and what it links to belong to the user, to root or, for root, to the user of sudo ($SUDO_UID).

    With `safe`, nobody else may replace a part of the path that root uses.
    """
    user = os.geteuid()
    users, groups = (_id_in(env, variable) if user == 0 else set() for variable in ("SUDO_UID", "SUDO_GID"))
    try:
        owners = {os.lstat(path).st_uid, os.stat(path).st_uid}
    except OSError:
        return False
    is_replaceable = safe and user == 0 and Trusted(users, groups).replaceable_component(path)
    return owners <= {0, user, *users} and not is_replaceable


def _id_in(env: Mapping[str, str], variable: str) -> set[int]:
    text = env.get(variable, "")
    return {int(text)} if text.isdecimal() else set()


def _near_miss(cwd: str) -> str:
    """The name of a file that resembles a configuration file's name, such as poolctl.toml or Pool.yaml, or ""."""
    endings = tuple(name.removeprefix("pool") for name in FILE_NAMES)
    try:
        names = [name for name in sorted(os.listdir(cwd)) if name.lower().startswith("pool")]
    except OSError:
        return ""
    return min((name for name in names if name.lower().endswith(endings)), key=len, default="")


def candidate_files(cwd: str) -> list[str]:
    """The absolute paths of possible configuration files in the directory `cwd`, by precedence."""
    return [os.path.normpath(os.path.join(cwd, name)) for name in (*FILE_NAMES, PYPROJECT)]


def default_file(directory: str) -> str:
    """The path of the configuration file that is found in a working directory, if none is named; "" without one."""
    for path in candidate_files(directory):
        if os.path.lexists(path) and (not path.endswith(PYPROJECT) or has_poolctl_section(path)):
            return path
    return ""


def directory_of(path: str) -> str:
    """The directory of a configuration file; a directory of files is its own."""
    return path if os.path.isdir(path) else os.path.dirname(path)


def has_poolctl_section(path: str) -> bool:
    """Whether a pyproject.toml seems to have [tool.poolctl]. Searches the text, without parsing it."""
    try:
        return re.search(_SECTION, read_regular_truncated(path, PYPROJECT_LIMIT_BYTES)) is not None
    except OSError:
        return False


MAX_BYTES = 8 * 1024 * 1024
SUFFIXES = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
_NO_FILE = "there is no such file"
_TYPES = {"d": "a directory", "p": "a FIFO", "s": "a socket", "c": "a device", "b": "a device"}
_OTHER_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
# A key that ends in _env, and its value: the name of a variable.
_NAMED = rb"""_env["']?\s*[=:]\s*["']?([A-Za-z_][A-Za-z0-9_]*)"""
_CHUNK_BYTES = 1024 * 1024


class NotRegular(OSError):
    """The path is not a regular file."""


def read_regular_truncated(
    path: str, most_bytes: int = MAX_BYTES, *, for_another_user: bool = False
) -> bytes:
    """The first `most_bytes` of a file. Raises NotRegular, other OSErrors, and ValueError for a NUL in the path.

    With `for_another_user` the file is read for the server of another user, who may have made a symbolic link: a link
    is followed only if its target belongs to the user who made the link. BlockingIOError means a kernel file without
    data at present, such as /proc/kmsg.
    """
    # Opening a FIFO would block, and opening a terminal could make it the controlling terminal.
    if for_another_user:
        descriptor = open_to_read(path)
    else:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegular(f"this is {_TYPES.get(stat.filemode(mode)[0], 'something else')}, not a file")
        content = b""
        # Read to the end, because the size of a file in /proc is 0.
        while len(content) < most_bytes:
            chunk = os.read(descriptor, min(_CHUNK_BYTES, most_bytes - len(content)))
            if not chunk:
                break
            content += chunk
        return content
    finally:
        os.close(descriptor)


def read_text(path: str, *, for_another_user: bool = False, is_configuration: bool = False) -> str:
    """The whole file as text, without its byte order mark. Does not wait for special files. Raises Problem.

    `for_another_user` as in `read_regular_truncated`; with `is_configuration` a missing file's problem suggests `init`.
    """
    try:
        content = read_regular_truncated(path, MAX_BYTES + 1, for_another_user=for_another_user)
    except NotRegular as special:
        raise _problem(path, str(special), "name a regular file") from special
    except BlockingIOError as error:
        message = "nothing can be read from it: it is not a regular file"
        raise _problem(path, message, "name a file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise (
            missing_file(path) if is_configuration else _problem(path, _NO_FILE, "check the path")
        ) from error
    except PermissionError as error:
        raise _unreadable(path, "it") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _problem(path, f"cannot be read: {why}", "check the path and the disk") from error
    if len(content) > MAX_BYTES:
        fix = "split it: a directory of files is one configuration"
        raise _problem(path, f"larger than {MAX_BYTES // 1024 // 1024} MiB", fix)
    if content.startswith(_OTHER_BYTE_ORDER_MARKS):
        raise _problem(path, "the file is UTF-16 or UTF-32, not UTF-8", "save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        message = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise _problem(path, message, "save the file as UTF-8", before) from error
    before, nul, _ = text.partition("\0")
    if nul:
        raise _problem(path, "a NUL byte", "take it out; is this a text file?", before)
    return text


def kind_of(path: str) -> str:
    """`toml`, `yaml` or `json`, by the end of the name. Raises Problem."""
    kind = SUFFIXES.get(_suffix(path))
    if kind is None:
        if foreign := foreign_format(path):
            raise _problem(path, f"this is {foreign}, not a pool's file", foreign_file_hint(path, foreign))
        raise _problem(path, "not a configuration file by its name", "end it in .toml, .yaml, .yml or .json")
    return kind


def stamp_of(path: str) -> Stamp:
    """Inode, change time, modification time and size of a file, following links; None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size


def lasting_stamp_of(path: str) -> Stamp:
    """The stamp of a file; None also if the file is so new that its next change may not change the stamp."""
    stamp = stamp_of(path)
    return None if stamp is None or time.time_ns() - max(stamp[1:3]) < _TICK_NS else stamp


def files_of(path: str) -> list[str]:
    """The path itself, or for a directory its configuration files in the order of their names. Raises Problem.

    If the directory has a default file such as pool.toml, files without a pool's table are skipped as other programs'.
    """
    if not os.path.isdir(path):
        return [path]
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except PermissionError as error:
        raise _unreadable(path, "the directory") from error
    except OSError as error:
        raise _problem(path, f"cannot be listed: {error.strerror}", "check the path and the disk") from error
    files = [os.path.join(path, name) for name in names if _suffix(name) in SUFFIXES]
    files = [file for file in files if not file.endswith(f"/{PYPROJECT}") or has_poolctl_section(file)]
    if not files:
        raise _problem(path, "no configuration file in this directory", "put a pool.toml there")
    default = default_file(path)
    return [file for file in files if not default or file == default or _looks_like_pool_file(file)]


# An unknown table that is at least this similar to one of ours is reported as misspelt; others are ignored.
_MISSPELT = 0.8
# By path: the stamp of a file, and whether it seemed to be of a pool.
_seen_files: dict[str, tuple[Stamp, bool]] = {}


def _looks_like_pool_file(path: str) -> bool:
    """Whether a file has a table of a pool, or one that is misspelt. True for an unreadable file, which is reported.

    An unchanged file is not parsed again: the supervisor asks at each `list`, and the lock file of a package manager is
    large.
    """
    stamp = lasting_stamp_of(path)
    if stamp is None or path not in _seen_files or _seen_files[path][0] != stamp:
        _seen_files[path] = stamp, _has_pool_table(path)
    return _seen_files[path][1]


def _has_pool_table(path: str) -> bool:
    from poolctl.config.files.parsers import parse
    from poolctl.config.model.pool_tables import file_tables
    from poolctl.config.values.problems import similar

    try:
        data = parse(read_text(path), kind_of(path))
    except (ServerError, ValueError):
        return True
    data = pyproject_section(data) if os.path.basename(path) == PYPROJECT else data
    if not isinstance(data, dict):
        return True
    names = file_tables()
    tables = [key for key in map(str, data) if key in names or similar(key, names, 1, _MISSPELT)]
    return bool(tables) and not foreign_format(path, data)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def missing_file(path: str) -> Problem:
    """The problem of a file that was named but does not exist."""
    return _problem(path, _NO_FILE, "check the path, or write one with `poolctl init`")


def variables_named_by_env_keys(paths: Iterable[str]) -> set[str]:
    """The variables that `*_env` keys in these files or directories seem to name; found without parsing the files."""
    # Some processes start before the files are parsed.
    variables: set[str] = set()
    for path in paths:
        with contextlib.suppress(ServerError):
            for file in files_of(path):
                # Unreadable files are reported when they are loaded.
                with contextlib.suppress(OSError, ValueError):
                    variables |= {name.decode() for name in re.findall(_NAMED, read_regular_truncated(file))}
    return variables


def _unreadable(path: str, subject: str) -> Problem:
    from poolctl.file_access import why_unreadable  # not imported where every file can be read

    reason, fix = why_unreadable(path)
    return _problem(path, f"{subject} {reason}", fix)


def _problem(path: str, message: str, hint: str, before: str | None = None) -> Problem:
    """A problem with a file, located where the text `before` ends; None means a problem with the whole file."""
    # Not imported by processes that only read bytes.
    from poolctl.config.values.problems import Place, Problem

    line, column = (0, 0) if before is None else (before.count("\n") + 1, len(before) - before.rfind("\n"))
    return Problem(message, place=Place(path, line, column), hint=hint)


# The parts of a file of variables, compiled on first use. All possessive, so that one long line cannot cause
# backtracking.
_BLANKS = r"(?:[ \t\r\n]++|#[^\n]*+)*+"
_NAME = r"(?:export[^\S\r\n]++)?([^\s=#'\"]++)[^\S\r\n]*+=[^\S\r\n]*+"
_END = r"[^\S\n]*+(?:#[^\n]*+)?(?=\n|\Z)"
_SINGLE, _DOUBLE = r"'((?:[^'\\]++|\\.)*+)'", r'"((?:[^"\\]++|\\.)*+)"'
_PAIR = rf"(?s){_NAME}(?:{_SINGLE}{_END}|{_DOUBLE}{_END}|(?!['\"])([^\n]*+)){_BLANKS}"
_ESCAPES: dict[str, str] = dict(zip("abfnrtv\\'\"$`\n", [*"\a\b\f\n\r\t\v\\'\"$`", ""], strict=True))
# Linux's limits for execve(2). Nested references could expand a short file to a huge value, and many references to a
# huge environment.
MAX_VARIABLE_LENGTH, MAX_INSERTED = 128 * 1024, 8 * 1024 * 1024
# Applied only up to the last "}": beyond it, each "${NAME:-" would scan to the end of the text.
_REFERENCE = r"\$\{([A-Za-z_][A-Za-z0-9_]*+)(?::-([^}]*+))?\}"


class EnvFileError(ValueError):
    """An env file cannot be read or understood; the message names file and line."""


def read_env_file(
    file: str | EnvFile,
    environment: Mapping[str, str],
    earlier: Mapping[str, str] | None = None,
    *,
    for_another_user: bool,
) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """`earlier` with the variables of the file added; and line and name of each unset variable that it refers to.

    Blocks on the disk. Raises EnvFileError. For `for_another_user` see `read_regular_truncated`.

    The file is understood as by python-dotenv, with the differences that docs/environment.md lists. Blank lines and
    comments are skipped, `export` is allowed. In double quotes backslashes escape; single quotes keep everything but an
    escaped quote; a value in quotes may span several lines; without quotes it ends at ` #`. `${NAME}` and
    `${NAME:-default}` are replaced, except in single quotes, by the value in `environment`, in an earlier line, or in
    `earlier`.
    """
    path, expand = (file, True) if isinstance(file, str) else (file.path, file.expand)
    from poolctl.config.values.problems import Problem

    try:
        text = read_text(path, for_another_user=for_another_user)
    except Problem as problem:
        fix = f"; {problem.hint}" if isinstance(problem.__cause__, PermissionError) else ""
        raise EnvFileError(f"{path}: {problem.message}{fix}") from problem
    variables = dict(earlier or {})
    unset: list[tuple[int, str]] = []
    pair, escape_or_reference = re.compile(_PAIR), re.compile(rf"(?s)\\(.)|{_REFERENCE}")
    blanks = re.match(_BLANKS, text)
    offset = blanks.end() if blanks else 0
    line, inserted, in_all = text.count("\n", 0, offset) + 1, 0, 0

    def replacement(match: re.Match[str]) -> str:
        *escaped, name, default = match.groups()
        if name is None:
            return _ESCAPES.get(escaped[0], match[0])
        if not expand:
            return match[0]
        value = environment.get(name, variables.get(name, default))
        if value is None:
            unset.append((line, name))
        nonlocal inserted, in_all
        inserted += len(value or "")
        in_all += len(value or "")
        if inserted > MAX_VARIABLE_LENGTH:
            raise EnvFileError(f"{path}:{line}: the value is longer than {MAX_VARIABLE_LENGTH} characters")
        if in_all > MAX_INSERTED:
            raise EnvFileError(f"{path}:{line}: references have inserted more than {MAX_INSERTED} characters")
        return value or ""

    while offset < len(text):
        match = pair.match(text, offset)
        if match is None:
            assignment = re.compile(_NAME).match(text, offset)
            message = "no NAME=value; a comment starts with #"
            if assignment:
                message = f"the quote of {assignment[1]} is not closed, or text follows it"
            raise EnvFileError(f"{path}:{line}: {message}")
        inserted = 0
        name, single, double, bare = match.groups()
        if single is not None:
            value = re.sub(r"\\([\\'])", r"\1", single)
        elif double is not None:
            end = double.rfind("}") + 1
            value = escape_or_reference.sub(replacement, double[:end])
            value += re.sub(r"(?s)\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), double[end:])
        else:
            # A comment begins after a blank: "A=#fff" is a colour, "A= # none" is empty.
            is_empty = bare.startswith("#") and text[match.start(4) - 1] != "="
            bare = "" if is_empty else re.split(r"\s#", bare, maxsplit=1)[0].rstrip()
            end = bare.rfind("}") + 1
            value = re.sub(_REFERENCE, replacement, bare[:end]) + bare[end:]
        variables[name] = value
        line += text.count("\n", offset, match.end())
        offset = match.end()
    return variables, unset


def default_env_file(base_dir: str) -> tuple[str, ...]:
    """The default of a server's env_file: `.env` in the directory of its configuration file, or () if missing."""
    path = os.path.join(base_dir, ".env")
    return (path,) if os.path.isfile(path) else ()


def read_env_files(server: ServerConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a server's env files; later files take precedence. `environment` is the server's without them.

    Blocks on the disk. Raises ServerError for a file that cannot be read.
    """
    variables: dict[str, str] = {}
    for file in server.env_file:
        try:
            another = server.user is not None
            variables, _ = read_env_file(file, environment, variables, for_another_user=another)
        except EnvFileError as error:
            hint = "fix the file, or remove it from env_file; [] is none"
            raise ServerError(str(error), name=server.name, bind=server.bind, hint=hint) from error
    return variables


def pyproject_section(data: Tree) -> Tree:
    """The value of [tool.poolctl] in a pyproject.toml; None without it."""
    for part in SECTION:
        data = data.get(part) if isinstance(data, dict) else None
    return data


PROCFILE = "a Procfile"
SUPERVISORD = "a file of supervisord"
UNIT = "a systemd unit"
COMPOSE = "a file of docker compose"
ECOSYSTEM = "an ecosystem file of pm2"
JAVASCRIPT = "JavaScript"
CIRCUS = "a file of circus"
UWSGI = "a file of uWSGI"
PROCESS_COMPOSE = "a file of process-compose"
NOT_IMPORTED = (CIRCUS, UWSGI, PROCESS_COMPOSE)
_NAMES = {
    PROCFILE: r"procfile(\..*)?|.*\.procfile",
    UNIT: r".*\.service",
    JAVASCRIPT: r".*\.(js|cjs|mjs|ts)",
}
# By a section of a .conf or .ini file.
_SECTIONS = {
    CIRCUS: re.compile(r"(?m)^\[(circus\]|watcher:)"),
    UWSGI: re.compile(r"(?m)^\[uwsgi\]"),
    SUPERVISORD: re.compile(
        r"(?m)^\[(program:|group:|eventlistener:|fcgi-program:|rpcinterface:"
        r"|(supervisord|supervisorctl|unix_http_server|inet_http_server|include)\])"
    ),
}


def foreign_format(path: str, data: Tree = None) -> str:
    """The format of another tool's file, recognized by its content `data`, or without it by its name; "" if unknown.

    Many tools have files that end in .conf or .ini: of these the sections are read.
    """
    if isinstance(data, dict):
        if "server" in data or "pool" in data or _suffix(path) == ".toml":  # no other tool's file is TOML
            return ""
        if isinstance(data.get("services"), dict) or isinstance(data.get("include"), list):
            return COMPOSE
        if isinstance(data.get("processes"), dict):
            return PROCESS_COMPOSE
    if isinstance(data, (dict, list)):
        return ECOSYSTEM if _has_apps(data) else ""
    if _suffix(path) in (".conf", ".ini"):
        with contextlib.suppress(ServerError):
            text = read_text(path)
            return next((kind for kind, section in _SECTIONS.items() if section.search(text)), "")
    name = os.path.basename(path).lower()
    return next((kind for kind, pattern in _NAMES.items() if re.fullmatch(pattern, name)), "")


def _has_apps(data: Tree) -> bool:
    """Whether these are apps of pm2: a list or a single one in `apps` or `pm2`, or as the whole file."""
    apps = data.get("apps", data.get("pm2", data)) if isinstance(data, dict) else data
    if isinstance(apps, list) and apps is not data:
        return True
    each_app = apps if isinstance(apps, list) else [apps]
    return any(isinstance(app, dict) and isinstance(app.get("script"), str) for app in each_app)


def foreign_file_hint(path: str, foreign: str) -> str:
    """A hint that names the command to convert another tool's file."""
    import shlex

    from poolctl.config.values.problems import path_from_working_directory

    if foreign in NOT_IMPORTED:
        return "write a [[server]] for each of its programs"
    if foreign != JAVASCRIPT:
        return (
            f"`poolctl import {shlex.quote(path_from_working_directory(path))} -o pool.toml` makes one of it"
        )
    module, option = f"./{os.path.basename(path)}", "-p"
    script = f'JSON.stringify(require("{module}"), null, 2)'
    if path.endswith(".mjs"):
        script, option = f'import("{module}").then(it => console.log(JSON.stringify(it.default)))', "-e"
    as_json = f"node {option} {shlex.quote(script)} > ecosystem.json"
    return f"print it as JSON, `{as_json}`; `poolctl import ecosystem.json -o pool.toml` makes one of that"
