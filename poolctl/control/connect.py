"""Finding a running pool by its file, its name or the working directory, and a client for it."""

from __future__ import annotations

import os

from poolctl.control import pool_paths
from poolctl.control.client import Client, NoSupervisor
from poolctl.control.pool_client import PoolClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def connect(config_or_name: str | os.PathLike[str] | None = None) -> PoolClient:
    """Return a client of a running pool, named by its file, its name, or the working directory.

    Raises NoSupervisor when none is running. Does not read the file, so a broken one does not matter.
    """
    path = find_socket(None if config_or_name is None else os.fspath(config_or_name), os.environ)
    client = Client(path)
    client.ping()
    return PoolClient(client)


def find_socket(config_or_name: str | None, env: Mapping[str, str]) -> str:
    """Return where the control socket of a pool is or would be; NoSupervisor for an unknown name."""
    if config_or_name is None:
        from poolctl.config import ConfigNotFound, find_config

        try:
            first = find_config([], env, os.getcwd())[0]
        except ConfigNotFound as error:
            raise NoSupervisor(error.message, hint=error.hint) from None
    elif _is_path(config_or_name):
        first = os.path.abspath(config_or_name)
    else:
        named = pool_paths.named_pool_dir(env, config_or_name)
        if named is None:
            raise NoSupervisor(
                f"no running pool is named {config_or_name!r}", hint="start it with poolctl start"
            )
        return f"{named}/{pool_paths.SOCKET_NAME}"
    return f"{pool_paths.pool_dir(env, pool_paths.pool_key(first))}/{pool_paths.SOCKET_NAME}"


def _is_path(config_or_name: str) -> bool:
    """Whether it names a file, be it gone by now, rather than a pool."""
    looks_so = "/" in config_or_name or config_or_name.endswith((".toml", ".yaml", ".yml", ".json"))
    return looks_so or os.path.exists(config_or_name)
