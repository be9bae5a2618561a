"""Why this process cannot read or execute a file, and a command that fixes it. Standard library only."""

from __future__ import annotations

import errno
import grp  # noqa: F401 - for group_name: a process may have become a user who cannot read Python's library
import json
import os
import shlex
import stat
from typing import TYPE_CHECKING

from poolctl.platform import group_name, user_name

if TYPE_CHECKING:
    from collections.abc import Iterator

# Reason and fix. The reason continues a sentence that begins with the name of the file.
Obstacle = tuple[str, str]

_NOT_THERE, _INSTALL = "is not there", "install it, or write its full path"
_FIRST_LINE_BYTES = 255  # Linux reads no more of a script (BINPRM_BUF_SIZE)
_MAX_SCRIPTS = 4  # nested script interpreters, as in execve(2)
# These interpreters ignore a carriage return after their options.
_OPTIONS_WITH_CARRIAGE_RETURN = ("perl", "ruby")


def why_unreadable(path: str) -> Obstacle:
    """Why this process may not read the file or directory at `path`, and the fix."""
    return _closed_directory(path) or (f"may not be read by {_this_user()}", _permission_fix(path, "r"))


def why_not_executable(program: str, search_path: str, cwd: str) -> Obstacle | None:
    """Why this process cannot execute the program in the directory `cwd`; None if its file shows no reason.

    A name without a slash is looked up in the directories of `search_path`, as by execvp(3). Blocks on the disk.
    """
    return _program_obstacle(program, search_path, cwd, _MAX_SCRIPTS)


def why_execution_failed(program: str, search_path: str, error: OSError) -> str:
    """Why execve(2) of the program failed with `error` in this process and its working directory, and the fix."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return "the working directory has been removed"
    file = next(_candidates(program, search_path, here), None)
    # Not found by a relative path, or below a directory that may not be entered.
    is_elsewhere = "/" in program and (program[0] != "/" or error.errno == errno.EACCES)
    obstacle = why_not_executable(program, search_path, here) if file or is_elsewhere else None
    machine = os.uname().machine
    if file and obstacle is None and error.errno == errno.ENOEXEC:
        obstacle = f"is not for this machine, which is {machine}", f"install the program for {machine}"
    elif file and obstacle is None and error.errno == errno.ENOENT:
        fix = "install that (ldd names it), or a build of the program for this system"
        obstacle = "needs a dynamic loader that is not there", fix
    return f"it {obstacle[0]}; {obstacle[1]}" if obstacle else error.strerror or str(error)


def why_not_entered(directory: str, error: OSError) -> str:
    """Why chdir(2) to the directory failed with `error` in this process, and the fix if permissions are the reason."""
    closed = _first_closed_directory(os.path.join(directory, "file"))
    if closed is None:
        return error.strerror or str(error)
    return f"{_this_user()} may not enter {closed}; {_permission_fix(closed, 'x')}"


def _candidates(program: str, search_path: str, cwd: str) -> Iterator[str]:
    """The existing files that the name may stand for, broken links included, in the order of the search path."""
    if "/" in program:
        paths = [os.path.join(cwd, program.removeprefix("./"))]
    else:
        paths = [os.path.join(cwd, directory, program) for directory in search_path.split(os.pathsep)]
    yield from (
        path for path in paths if os.path.lexists(path) and ("/" in program or not os.path.isdir(path))
    )


def _program_obstacle(program: str, search_path: str, cwd: str, scripts_left: int) -> Obstacle | None:
    first: Obstacle | None = None
    for path in _candidates(program, search_path, cwd):
        obstacle = _file_obstacle(path, search_path, cwd, scripts_left)
        if obstacle is None:
            return None
        first = first or obstacle
    if first is None and "/" in program:
        path = os.path.normpath(os.path.join(cwd, program))
        place = "" if os.path.isabs(program) else f": looked for {path}"
        first = _closed_directory(path) or (f"{_NOT_THERE}{place}", _INSTALL)
    return first or (_NOT_THERE, _INSTALL)


def _file_obstacle(path: str, search_path: str, cwd: str, scripts_left: int) -> Obstacle | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if not os.path.islink(path):
            return _NOT_THERE, _INSTALL
        target = os.path.realpath(path)
        return f"is a link to {target}, which is not there", f"install that, or correct the link {path}"
    except OSError as error:
        return _closed_directory(path) or (f"cannot be looked at: {error.strerror}", "correct its path")
    if stat.S_ISDIR(status.st_mode):
        return "is a directory", "name a program in it"
    if not os.access(path, os.X_OK):
        if not status.st_mode & 0o111:
            return "is not executable", f"{_as_owner(status)}chmod +x {shlex.quote(path)}"
        if os.statvfs(path).f_flag & os.ST_NOEXEC:
            fix = "put it on another one, or write its interpreter before it"
            return "is on a file system that is mounted noexec", fix
        return f"may not be executed by {_this_user()}", _permission_fix(path, "rx")
    head = _head(path) if stat.S_ISREG(status.st_mode) else b""
    if head.startswith(b"#!"):
        return _script_obstacle(path, head, search_path, cwd, scripts_left)
    if head and b"\0" not in head:
        words = json.dumps(["sh", path], ensure_ascii=False)
        fix = f"begin it with a line such as #!/bin/sh, or write the interpreter: {words}"
        return "is a script without a #! line, which names its interpreter", fix
    return None


def _script_obstacle(
    path: str, head: bytes, search_path: str, cwd: str, scripts_left: int
) -> Obstacle | None:
    line = head[2:].split(b"\n")[0].strip(b" \t")
    interpreter, _, argument = os.fsdecode(line).replace("\t", " ").partition(" ")
    argument = argument.strip()
    name = os.path.basename(interpreter)
    if line.endswith(b"\r") and not (argument and name.startswith(_OPTIONS_WITH_CARRIAGE_RETURN)):
        reason = f"has Windows line ends (CRLF), and its first line names {os.fsdecode(line)!r}"
        return reason, rf"sed -i 's/\r$//' {shlex.quote(path)}"
    wanted = interpreter
    obstacle: Obstacle | None = None
    if not interpreter:
        obstacle = "is not named", ""
    elif not os.path.lexists(os.path.join(cwd, interpreter)):
        obstacle = _NOT_THERE, ""
    elif scripts_left:
        obstacle = _file_obstacle(os.path.join(cwd, interpreter), search_path, cwd, scripts_left - 1)
    if obstacle is None and name == "env" and (wanted := _program_of_env(argument)):
        if " " in argument and not argument.startswith("-"):
            fix = f"write #!{interpreter} -S {argument} as its first line"
            return f"is a script for {argument!r}, which {interpreter} takes for the name of one program", fix
        obstacle = _program_obstacle(wanted, search_path, cwd, scripts_left - 1) if scripts_left else None
    if obstacle is None:
        return None
    reason, fix = obstacle
    if reason.startswith(_NOT_THERE):
        fix = f"install {wanted}, or correct the first line of {path}"
    return f"is a script for {wanted or 'an interpreter'}, which {reason}", fix


def _program_of_env(argument: str) -> str:
    """The program that `#!/usr/bin/env ARGUMENT` runs; "" if the argument has options or variables."""
    word = argument.removeprefix("-S").strip().partition(" ")[0]
    return "" if word.startswith("-") or not word.isprintable() or set(word) & set("='\"") else word


def _head(path: str) -> bytes:
    """The beginning of a file; empty if it cannot be read."""
    try:
        # The file may have been replaced by a FIFO meanwhile.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _FIRST_LINE_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _closed_directory(path: str) -> Obstacle | None:
    """The first directory on the way to `path` that this process may not enter, as an obstacle; None without one."""
    directory = _first_closed_directory(path)
    if directory is None:
        return None
    return f"is in {directory}, which {_this_user()} may not enter", _permission_fix(directory, "x")


def _first_closed_directory(path: str) -> str | None:
    """The first directory on the way to `path` that this process may not enter; None without one."""
    directory = ""
    for part in os.path.dirname(os.path.abspath(path)).split("/")[1:]:
        directory = f"{directory}/{part}"
        if not os.access(directory, os.X_OK):
            return directory if os.path.isdir(directory) else None
    return None


def _permission_fix(path: str, letters: str) -> str:
    """The command that lets this process read (`r`), execute or enter (`x`) the file or directory at `path`.

    A script is also read, by its interpreter.
    """
    file, wanted = (
        shlex.quote(path),
        sum({"r": stat.S_IRGRP, "x": stat.S_IXGRP}[letter] for letter in letters),
    )
    try:
        status = os.stat(path)
    except OSError:
        return "run as its owner"
    if status.st_uid == os.geteuid():
        return f"chmod u+{letters} {file}"
    permit = "" if status.st_mode & wanted == wanted else f"chmod g+{letters} {file}"
    if status.st_gid in (os.getegid(), *os.getgroups()):
        return f"{_as_owner(status)}{permit}" if permit else "run as its owner"
    change = f"chgrp {group_name(os.getegid())} {file}"
    return f"as root: {' && '.join(filter(None, (change, permit)))}"


def _this_user() -> str:
    return f"user {user_name(os.geteuid())}"


def _as_owner(status: os.stat_result) -> str:
    """The prefix "as USER: " of a command for the file's owner; "" if this process may run it."""
    return "" if os.geteuid() in (0, status.st_uid) else f"as {user_name(status.st_uid)}: "
