"""Which pool a command is about: its files, and the directory in which its supervisor listens."""

from __future__ import annotations

import os

from poolctl.cli.outcome import UsageError
from poolctl.control import directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolctl.cli.request import Request


class Place:
    """A pool's files and its runtime directory, which need not exist."""

    __slots__ = ("directory", "files")

    def __init__(self, files: list[str], pool_directory: str) -> None:
        self.files = files
        self.directory = pool_directory

    def __repr__(self) -> str:
        return f"<Place {self.directory} of {', '.join(self.files)}>"

    @property
    def key(self) -> str:
        """The pool's key."""
        return os.path.basename(self.directory)

    @property
    def socket(self) -> str:
        """The path of its control socket, which need not exist."""
        return f"{self.directory}/{directory.SOCKET_NAME}"


def find_place(request: Request, env: Mapping[str, str] = os.environ) -> Place:
    """The pool that -c, --pool, $POOLCTL_CONFIG or the working directory names.

    Raises ConfigNotFound (5) when there is no file and no supervisor either, NoSupervisor for an unknown --pool.
    """
    paths = request.get("config") or []
    name = request.get("pool")
    if name is not None:
        if paths:
            raise UsageError(
                "--pool and -c exclude each other", hint="--pool names a running pool, -c a file"
            )
        return _named(name, env)
    from poolctl.config.find import ConfigNotFound, candidates, find_config

    cwd = _working_directory()
    try:
        files = find_config(paths, env, cwd)
    except ConfigNotFound:
        # The file may be gone while its pool runs: that keeps nobody from stopping it.
        for place in (_at(file, env) for file in candidates(cwd)):
            if os.path.exists(place.socket):
                return place
        raise
    return Place(files, _at(files[0], env).directory)


def _at(first: str, env: Mapping[str, str]) -> Place:
    return Place([first], directory.pool_dir(env, directory.pool_key(first)))


def _named(name: str, env: Mapping[str, str]) -> Place:
    found = directory.named_pool_dir(env, name)
    if found is None:
        from poolctl.control.client import NoSupervisor

        raise NoSupervisor(
            f"no running pool is named {name!r}", hint="start it where its file is: poolctl start"
        )
    return Place(_files_of(found), found)


def _files_of(pool_directory: str) -> list[str]:
    import json

    try:
        with open(f"{pool_directory}/info.json", encoding="utf-8") as info:
            return [str(file) for file in json.load(info)["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        # a shell may stand in a directory that was removed; PWD still tells which it was
        return os.environ.get("PWD") or "/"
