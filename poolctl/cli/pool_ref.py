"""Finds the pool for a command: its files, and the runtime directory in which its supervisor listens."""

from __future__ import annotations

import os
import sys

from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.output import command_annotations
from poolctl.cli.place import Place
from poolctl.cli.render import print_diagnostics, printable, relative_to_cwd
from poolctl.config import ConfigNotFound, candidate_files, default_file, find_config, missing_file
from poolctl.control import pool_paths
from poolctl.control.client import NoSupervisor
from poolctl.exit_codes import INVALID_CONFIGURATION


class PoolRef:
    """A pool's files and its runtime directory; the directory need not exist."""

    def __init__(self, files: list[str], pool_directory: str) -> None:
        self.files = files
        self.directory = pool_directory

    def __repr__(self) -> str:
        return f"<PoolRef {self.directory} of {', '.join(self.files)}>"

    @property
    def key(self) -> str:
        """The pool's key: the name of its runtime directory."""
        return os.path.basename(self.directory)

    @property
    def socket(self) -> str:
        """The path of the supervisor's control socket. It need not exist."""
        return f"{self.directory}/{pool_paths.SOCKET_NAME}"

    @property
    def logs_directory(self) -> str:
        """The directory of all logs without a configured path. It need not exist."""
        return f"{pool_paths.state_dir(os.environ, self.key)}/logs"


def find_pool(place: Place, *, missing_ok: bool = False) -> PoolRef:
    """Find the pool named by -c, --pool or $POOLCTL_CONFIG, or else the pool of the working directory or one above it.

    If the file is above the working directory, a line on standard error names it.

    A running pool is found even if its files are missing, with a warning. If the pool does not run, raises
    ConfigNotFound if no file is named or found, and Failure (exit 5) if a named file is missing. With `missing_ok`,
    missing files cause neither an error nor a warning. Raises NoSupervisor for an unknown --pool, and UsageError for
    --pool with -c.
    """
    pool = _find_pool(place, missing_ok=missing_ok)
    command_annotations.files = pool.files
    return pool


def _find_pool(place: Place, *, missing_ok: bool) -> PoolRef:
    paths = [*map(str, place.config or ())]
    name = place.pool
    if name is not None:
        if paths:
            raise UsageError(
                "--pool and -c cannot be combined", hint="--pool names a running pool, -c a file"
            )
        return _named(name)
    try:
        cwd = os.getcwd()
    except OSError:
        cwd = os.environ.get("PWD") or "/"  # the directory may have been removed; PWD still has its path
    try:
        files = find_config(paths, os.environ, cwd)
    except ConfigNotFound:
        if running := _pool_without_file(cwd, place, missing_ok=missing_ok):
            return running
        raise
    if not (paths or os.environ.get("POOLCTL_CONFIG")) and os.path.dirname(files[0]) != cwd:
        if running := _pool_without_file(cwd, place, missing_ok=missing_ok):
            return running
        if not place.quiet:
            sys.stderr.write(f"note: this is the pool of {printable(files[0])}\n")
    is_file_gone = os.path.isdir(files[0]) and not default_file(files[0])
    if is_file_gone and (running := _pool_without_file(files[0], place, missing_ok=missing_ok)):
        return running
    pool = PoolRef(files, _pool_at(files[0]).directory)
    missing = [] if missing_ok else [file for file in files if _is_missing(file)]
    if missing:
        if not _is_running_or_left(pool):
            from poolctl.control.answers import ErrorEntry

            errors = [ErrorEntry.of(missing_file(file)) for file in missing]
            raise Failure(Outcome(errors=errors, exit_code=INVALID_CONFIGURATION))
        _warn_of_missing(missing, place)
    return pool


def _pool_without_file(directory: str, place: Place, *, missing_ok: bool) -> PoolRef | None:
    """The running pool of a file that was found in the directory when the pool started, but is gone; else None."""
    running = next(filter(_is_running_or_left, map(_pool_at, candidate_files(directory))), None)
    if running is not None and not missing_ok:
        _warn_of_missing(running.files, place)
    return running


def _is_missing(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass  # reported on reading
    return False


def _is_running_or_left(pool: PoolRef) -> bool:
    """Whether the pool runs (even without its control socket), or was killed and left processes behind."""
    from poolctl.control.pool_lock import user_locks
    from poolctl.runners.left_overs import left_overs

    if pool_paths.listens(pool.socket) or user_locks().is_held(pool.directory):
        return True
    return bool(left_overs(pool.directory))


def _warn_of_missing(files: list[str], place: Place) -> None:
    if not place.quiet:
        warnings = [f"{relative_to_cwd(file)} no longer exists, but its pool is running" for file in files]
        print_diagnostics(Outcome(warnings=warnings))


def _pool_at(first: str) -> PoolRef:
    return PoolRef([first], pool_paths.pool_dir_of_file(os.environ, first))


def _named(name: str) -> PoolRef:
    directory = pool_paths.named_pool_dir(os.environ, name)
    if directory is None:
        raise NoSupervisor(
            f"no running pool is named {name!r}", hint="start it from its file: poolctl -c FILE start"
        )
    return PoolRef(_files_of(directory), directory)


def same_name_warning(pool: PoolRef) -> str:
    """A warning about other running pools with the same name, which make --pool ambiguous; "" without any."""
    name = str(pool_paths.read_info(pool.directory).get("name") or "")
    others = [
        path for path in pool_paths.pool_dirs_named(os.environ, name) if os.path.basename(path) != pool.key
    ]
    if not others:
        return ""
    files = ", ".join(file for path in others for file in _files_of(path) or [path])
    return f"another pool is also named {name!r}: {files}; --pool {name} is ambiguous, use -c FILE"


def _files_of(pool_directory: str) -> list[str]:
    files = pool_paths.read_info(pool_directory).get("files")
    return [str(file) for file in files] if isinstance(files, list) else []
