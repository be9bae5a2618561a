"""Connects a Python program to a running pool, or starts the pool's supervisor first."""

from __future__ import annotations

import os

from poolctl.config import find_config
from poolctl.control.client import Client, NoSupervisor, SupervisorEnded
from poolctl.control.other_users import refuse_second_pool
from poolctl.control.pool_client import PoolClient, find_socket
from poolctl.supervisor.launch import launch


def connect(config_or_name: str | os.PathLike[str] | None = None, *, start: bool = False) -> PoolClient:
    """Return a client of a running pool, named by its file, its name, or the working directory.

    Raises NoSupervisor if no such pool is running. Does not read the file, so a broken one does not matter. With
    `start`, starts a supervisor if none runs, but no server (see `client.start()`); it outlives this program. Then
    raises PoolValidateError for a file with problems, and ControlError if the supervisor cannot start.
    """
    name = None if config_or_name is None else os.fspath(config_or_name)
    client = Client(find_socket(name, os.environ))
    pool = PoolClient(client)
    try:
        client.ping()
    except (NoSupervisor, SupervisorEnded):  # a supervisor that ends may have stopped its pool
        if not start:
            raise
        files = find_config([] if name is None else [name], os.environ, os.getcwd())
        refuse_second_pool(files)
        launch(files, os.environ)
        pool.list(selector={"allow_empty": True})  # its first answer has the problems of the files
    return pool
