"""Finds a server's interpreter or program, and checks whether other users can modify code that the interpreter runs.

Code that other users can modify should not run as root. If root runs poolctl, such an interpreter is started as the
server's user; a server that runs as root gets a warning. Standard library only.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import sys
from typing import TYPE_CHECKING, Any

from poolctl.platform import user_name
from poolctl.private_directory import Trusted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolctl.config.model.server_keys import ServerConfig
    from poolctl.config.values.problems import Finding, KeyPath


def interpreter(python: str | None) -> str:
    """The absolute path of a server's interpreter. `python` is a file or a virtual environment; None: poolctl's own."""
    if python is None:
        return sys.executable
    return _python_in(python) if os.path.isdir(python) else python


def default_interpreter(base_dir: str, env: Mapping[str, str]) -> str | None:
    """The interpreter of the environment for servers of a file in `base_dir`; None if no environment is found.

    The first of: an active environment below `base_dir`, as tox and nox have it; `.venv` in `base_dir`; an active
    environment elsewhere. Whether it can be used is not checked: see `broken_environment`.
    """
    local_environment, active = os.path.join(base_dir, ".venv"), active_environment(env)
    if os.path.isdir(local_environment) and not _is_below(active, base_dir):
        return _python_in(local_environment)
    return _python_in(active) if active else None


def active_environment(env: Mapping[str, str]) -> str:
    """The directory of the active virtual environment, or of conda's if it has Python and is not its base; or ""."""
    if active := env.get("VIRTUAL_ENV", ""):
        return active
    conda = env.get("CONDA_PREFIX", "")
    return conda if conda and _is_environment(conda) and os.path.exists(_python_in(conda)) else ""


def broken_environment(python: str) -> tuple[str, str] | None:
    """(problem, fix) if the interpreter of a default environment cannot be run; else None."""
    if os.access(python, os.X_OK):
        return None
    environment = os.path.dirname(os.path.dirname(python))
    again = f"python3 -m venv --clear {shlex.quote(environment)}"
    if not os.path.isdir(environment):
        fix = f"make it: {again}; or activate another one, or unset VIRTUAL_ENV"
        return f"the active environment {environment} is not there", fix
    why = "is not executable" if os.path.exists(python) else "is not there"
    if os.path.islink(python):
        why = f"is a link to {os.path.realpath(python)}, which {why}"
    fix = f"make it again: {again}; or name another one with python"
    return f"the environment {environment} is broken: bin/python {why}", fix


def with_virtual_environment(
    server: ServerConfig, variables: Mapping[str, str], inherited: Mapping[str, str]
) -> dict[str, str]:
    """The `variables` of a server, with PATH and VIRTUAL_ENV if it has a virtual environment.

    Programs of that environment come first in the inherited PATH; last, if root runs them and others may change them. A
    PATH in `variables` stays as it is.
    """
    environment = virtual_environment(server)
    if not environment or "PATH" in variables:
        return {**variables}
    bin_directory = f"{environment}/bin"
    path_entries = [
        place for place in inherited.get("PATH", os.defpath).split(os.pathsep) if place != bin_directory
    ]
    goes_last = runs_as_root(server.user) and find_program_others_may_change(bin_directory)
    path_entries.insert(len(path_entries) if goes_last else 0, bin_directory)
    return {"PATH": os.pathsep.join(path_entries), "VIRTUAL_ENV": environment, **variables}


def virtual_environment(server: ServerConfig) -> str:
    """The directory of the virtual environment of the server's `python`; "" if it has none."""
    environment = os.path.dirname(os.path.dirname(server.python or ""))
    return environment if environment and _is_environment(environment) else ""


def find_program_others_may_change(directory: str) -> str:
    """The first path in a directory of programs that a user other than root and the current one may modify, or ""."""
    trusted = Trusted()
    return trusted.replaceable_component(directory) or _entry_others_may_write(directory, trusted)


def runs_as_root(user: str | None) -> bool:
    """Whether a server of this user (USER or USER:GROUP) runs as root. False for an unknown user."""
    try:
        return os.geteuid() == 0 and (user is None or ids_of(user)[0] == 0)
    except KeyError:
        return False


def _python_in(directory: str) -> str:
    return os.path.join(directory, "bin", "python")


def _is_below(directory: str, above: str) -> bool:
    """Whether a directory, which may be "", is the other one or lies below it."""
    top = os.path.abspath(above).rstrip("/")
    return bool(directory) and f"{os.path.abspath(directory)}/".startswith(f"{top}/")


def _is_environment(directory: str) -> bool:
    """Whether it is a virtual environment, or one of conda that is not its base."""
    if os.path.exists(os.path.join(directory, "pyvenv.cfg")):
        return True
    has = {name: os.path.isdir(os.path.join(directory, name)) for name in ("conda-meta", "condabin")}
    return has["conda-meta"] and not has["condabin"]


def ids_to_start_interpreter_as(
    interpreter: str, user: tuple[int, int] | None, env: Mapping[str, str]
) -> tuple[int, int] | None:
    """Return the (uid, gid) with which to start a server's interpreter; None to start it as the current user.

    Returns `user` if poolctl runs as root but other users may change the interpreter's code: root must not run it.
    """
    if user is None or os.geteuid() != 0 or not find_path_others_may_change(interpreter, env):
        return None
    return user


def start_options(interpreter: str, user: str | None, env: Mapping[str, str]) -> dict[str, Any]:
    """The subprocess options that start the interpreter for a server of this user, USER or USER:GROUP.

    Empty if the interpreter keeps the current user (see `ids_to_start_interpreter_as`), or if the user is unknown.
    """
    try:
        as_user = user is not None and ids_to_start_interpreter_as(interpreter, ids_of(user), env) is not None
    except KeyError:
        return {}  # unknown user: nothing is started for the server
    return user_options(user, env) if user is not None and as_user else {}


def user_options(user: str, env: Mapping[str, str]) -> dict[str, Any]:
    """The subprocess options that start a program as this user, USER or USER:GROUP. Raises KeyError if unknown."""
    uid, gid = ids_of(user)
    return {
        "user": uid,
        "group": gid,
        "extra_groups": os.getgrouplist(user.partition(":")[0], gid),
        "env": {**env, "HOME": pwd.getpwuid(uid).pw_dir},
    }


def ids_of(user: str) -> tuple[int, int]:
    """The (uid, gid) of USER or USER:GROUP. Raises KeyError if the user or the group is unknown."""
    name, _, group = user.partition(":")
    account = pwd.getpwnam(name)
    return account.pw_uid, grp.getgrnam(group).gr_gid if group else account.pw_gid


def find_path_others_may_change(
    interpreter: str, env: Mapping[str, str], trusted: Trusted | None = None
) -> str:
    """The first of the interpreter's paths that anyone but the `trusted` users may change, or "".

    By default root and the current user are trusted. Checks the interpreter, its library, the directories on its import
    path and their direct entries; missing paths are ignored. Reads a few hundred entries: 2 ms.
    """
    trusted = trusted or Trusted()
    for path in _directories(interpreter, env):
        if not os.path.exists(path):
            continue
        # A file here is a ZIP archive of modules, which may contain a sitecustomize.
        component = trusted.replaceable_component(path) or (
            _entry_others_may_write(path, trusted) if os.path.isdir(path) else ""
        )
        if component:
            return component
    return trusted.replaceable_component(interpreter)


def root_trust_problem(interpreter: str, env: Mapping[str, str]) -> tuple[str, str]:
    """(reason, fix) if other users can change code that this interpreter would run as root; else ("", "")."""
    path = find_path_others_may_change(interpreter, env)
    if not path:
        return "", ""
    who, fix = who_may_change(path)
    return f"{who} can modify {path}, whose code this server runs as root", fix


def who_may_change(path: str) -> tuple[str, str]:
    """(who, fix) for a path that others than root may change."""
    status = os.lstat(path)
    if status.st_uid == 0:
        return "other users", f"chmod -R go-w {path}"
    owner = user_name(status.st_uid)
    fix = f"chown -R root {path}"
    if owner != str(status.st_uid):
        fix += f", or user = {owner!r}"
    return f"user {owner}", fix


def directory_for_environment(server: ServerConfig) -> str:
    """The directory in which `.venv` would be found for a server that lacks an environment; "" for other servers.

    This is the directory of the server's file or, for `run MODULE:APP`, whose file is in the state directory, the
    working directory.
    """
    if not server.lacks_environment:
        return ""
    return server.base_dir if _is_below(server.app_dir, server.base_dir) else server.cwd


def missing_module(
    missing: str, module: str, app_dir: str, python: str, new_environment_in: str = ""
) -> tuple[str, str]:
    """(problem, fix) if importing an application's `module` failed because the module `missing` was not found.

    If `new_environment_in` is given, the fix is to create `.venv` in this directory: `python` is poolctl's own
    interpreter, and nothing is installed there.
    """
    if missing.partition(".")[0] == module.partition(".")[0]:
        shown_module = module if f"{module}.".startswith(f"{missing}.") else missing
        return f"there is no module {shown_module!r} in {app_dir}", "check app and app_dir"
    from poolctl.installation import install_module_command

    if missing.partition(".")[0] in sys.stdlib_module_names:
        problem = f"{module} imports {missing!r}, which is part of Python, but not of {python}"
        return problem, "check its name, or set python to an interpreter that has it"
    problem = f"{module} imports {missing!r}, which is not installed"
    if "." in missing:  # the package itself was found
        return problem, f"check its name, or install the package or version that has {missing}"
    if new_environment_in:
        environment = os.path.join(new_environment_in, ".venv")
        make = f"python3 -m venv {shlex.quote(environment)}"
        install = install_module_command(_python_in(environment), missing, "uvicorn")
        return problem, f"install it beside the file: {make} && {install}"
    return problem, f"install it there: {install_module_command(python, missing)}"


def missing_program(
    server: ServerConfig,
    env: Mapping[str, str],
    path: KeyPath = ("command",),
    words: Sequence[str] | None = None,
) -> Finding | None:
    """The problem if the program of the server's command cannot be found or executed, else None.

    If `words`, the value of the key at `path`, are given, they are checked instead. `env` is the program's environment.
    """
    from poolctl.config.values.problems import Finding
    from poolctl.config.values.shell_line import words_meant
    from poolctl.config.values.toml_text import escaped, value_text
    from poolctl.file_access import why_not_executable

    words = (server.command if words is None else words) or ()
    program = words[0] if words else "{"
    if "{" in program:
        return None
    search_path = env.get("PATH", os.defpath)
    problem = why_not_executable(program, search_path, server.cwd)
    if problem is None:
        return None
    reason, fix = problem
    intended = words_meant(words)
    if intended and why_not_executable(intended[0], search_path, server.cwd) is None:
        fix = f"write {value_text(escaped(intended))}"
    return Finding((*path, 0), f"{program!r} {reason}", fix, program)


def _directories(interpreter: str, env: Mapping[str, str]) -> Iterator[str]:
    """The directories and archives in which the interpreter finds modules (site, sys.path)."""
    prefix, real = _prefix(interpreter), _prefix(os.path.realpath(interpreter))
    settings = _read_settings(f"{prefix}/pyvenv.cfg")
    home = settings.get("home")
    bases = {real} if home is None else {real, os.path.dirname(home)}
    for library in [directory for base in (prefix, *bases) for directory in _libraries(base, "python3.")]:
        yield library
        yield from _paths_in_directory(library, "lib-dynload")
    sites = [f"{library}/site-packages" for library in _libraries(prefix, "python3.")]
    if home is None or settings.get("include-system-site-packages") == "true":
        user_base = env.get("PYTHONUSERBASE") or os.path.join(env.get("HOME", "/"), ".local")
        for base in (*bases, *(f"{base}/local" for base in bases)):
            for library in _libraries(base, "python3"):
                sites += [f"{library}/site-packages", f"{library}/dist-packages"]
        user_libraries = _paths_in_directory(f"{user_base}/lib", "python3.")
        sites += [f"{library}/site-packages" for library in user_libraries]
    for site in filter(os.path.lexists, sites):
        yield site
        yield from _named_by_pth(site)
    yield from filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    yield from filter(None, env.get("PYTHONHOME", "").split(os.pathsep))


def _libraries(base: str, start: str) -> list[str]:
    return [
        path for library in _paths_in_directory(base, "lib") for path in _paths_in_directory(library, start)
    ]


def _paths_in_directory(directory: str, start: str = "", end: str = "") -> list[str]:
    """The paths of a directory's entries that begin with `start` and end with `end`; [] if it cannot be read.

    Avoids `glob`, which is slow to import.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return [os.path.join(directory, name) for name in names if name.startswith(start) and name.endswith(end)]


def _prefix(interpreter: str) -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(interpreter)))


def _read_settings(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.partition("=") for line in file]
    except OSError:
        return {}
    return {key.strip().lower(): value.strip() for key, _, value in rows}


def _named_by_pth(site: str) -> Iterator[str]:
    for path in _paths_in_directory(site, end=".pth"):
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.strip() and not line.startswith(("#", "import ", "import\t")):
                yield os.path.join(site, line.strip())


def _entry_others_may_write(directory: str, trusted: Trusted) -> str:
    try:
        if trusted.others_may_write(os.stat(directory)):
            return directory
        with os.scandir(directory) as entries:
            for entry in entries:
                if trusted.others_may_write(entry.stat(follow_symlinks=False)):
                    return entry.path
    except OSError:
        return directory
    return ""
