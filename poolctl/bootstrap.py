"""Runs a part of poolctl in any interpreter: `python /path/to/poolctl/bootstrap.py PART [ARGUMENT…]`.

The keeper, the logger and the workers run in interpreters in which poolctl need not be installed (the application's
virtual environment, if poolctl itself was installed with pipx). This file makes its own package importable there, but
does not add the package's directory to the path: that directory may hold other versions of the application's libraries.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

# The oldest supported versions for workers.
MIN_PYTHON = (3, 11)
MIN_UVICORN = (0, 53)
PACKAGE = os.path.dirname(os.path.abspath(__file__))
# May be ignored on purpose (nohup(1), a shell's background jobs), or by Python itself (SIGPIPE, SIGXFSZ).
_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ)


def reset_inherited_signals() -> None:
    """Reset signals that this process's caller has blocked or ignored: execve(2) keeps both (signal(7))."""
    for number in range(1, signal.NSIG):
        if signal.getsignal(number) is signal.SIG_IGN and number not in _MAY_BE_IGNORED:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main() -> None:
    """Run the part named by the first argument: import `poolctl.PART.__main__` and call its `main()`."""
    sys.path.insert(0, os.path.dirname(PACKAGE))
    __import__("poolctl")
    del sys.path[0]
    part = sys.argv.pop(1)
    # The keeper does this later, once it has handlers: signals that arrive during its exec stay blocked until then.
    if part != "keeper":
        reset_inherited_signals()
    entry = f"poolctl.{part}.__main__"
    # Imports create no garbage, and collections would take a tenth of the start.
    gc.disable()
    __import__(entry)
    gc.enable()
    sys.modules[entry].main()


def command(interpreter: str, part: str, *arguments: str, isolated: bool = False) -> list[str]:
    """The argument vector that runs poolctl's subpackage `part` with the Python at the path `interpreter`.

    With `isolated` the interpreter ignores PYTHON* variables and the user's site directory (`python -I`).
    """
    flags = "-I" if isolated else "-P"
    return [interpreter, flags, os.path.abspath(__file__), part, *arguments]


def installed_version() -> str:
    """The version of poolctl on disk, which may be newer than this process; "?" if unreadable."""
    try:
        with open(os.path.join(PACKAGE, "__init__.py"), encoding="utf-8") as file:
            return file.read().partition('__version__ = "')[2].partition('"')[0] or "?"
    except OSError:
        return "?"


def installed_build(package: str = PACKAGE) -> str:
    """A digest of the package's files on disk, because two builds may have the same version.

    Returns "" if a file is unreadable. Blocks while it reads all files.
    """
    from hashlib import blake2b  # loads OpenSSL, which a start does not need

    digest = blake2b(digest_size=16)
    try:
        for path in _installed_files(package):
            with open(path, "rb") as file:
                content = file.read()
            digest.update(f"{os.path.relpath(path, package)}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError:
        return ""
    return digest.hexdigest()


def is_package_changed_since(moment: float, package: str = PACKAGE) -> bool:
    """Whether a file of the package on disk was changed or replaced at this Unix time or later.

    Also True if a file cannot be examined.
    """
    try:
        return any(os.stat(path).st_ctime >= moment for path in _installed_files(package))
    except OSError:
        return True


def _installed_files(package: str) -> list[str]:
    paths: list[str] = []
    for directory, names, files in os.walk(package):
        names[:] = sorted({*names} - {"__pycache__"})
        paths += (os.path.join(directory, name) for name in sorted(files))
    return paths


def as_user(uid: int, gid: int, argv: list[str]) -> list[str]:
    """An argument vector that switches to this user and group, and then executes `argv`."""
    return command(sys.executable, "worker", "as", str(uid), str(gid), *argv, isolated=True)


def uvicorn_problem(python: str, version: str | None) -> tuple[str, str] | None:
    """The problem with the uvicorn of the interpreter `python`, and the fix; None if it is new enough.

    `version` is None if uvicorn is missing. A version that is not numeric is accepted.
    """
    from poolctl.installation import install_command  # not at the top: this file may run as a script

    if version is None:
        return "has no uvicorn", f"install it there: {install_command(python, 'uvicorn')}"
    try:
        old = tuple(map(int, version.split(".")[:2])) < MIN_UVICORN
    except ValueError:
        return None
    if not old:
        return None
    needed = ".".join(map(str, MIN_UVICORN))
    return (
        f"has uvicorn {version}, and workers need {needed} or newer",
        f"upgrade it there: {install_command(python, 'uvicorn', upgrade=True)}",
    )


if __name__ == "__main__":
    main()
