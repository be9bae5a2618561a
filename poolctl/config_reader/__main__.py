"""Runs the process `poolctl-config`, which reads configuration files for the supervisor.

The process is separate from the supervisor because validation needs memory and libraries that load slowly.

A request has a file in memory with a pickled tuple: the name of a method of the class ConfigRequestHandler, and the
method's arguments. An answer names the `version` of poolctl on disk, and has such a file with the pickled result,
unless that version is another one.
"""

from __future__ import annotations

import _thread
import gc
import os
from queue import SimpleQueue

from poolctl import __version__, bootstrap
from poolctl.config import disable_pydantic_plugins
from poolctl.keeper import wire
from poolctl.keeper.supervisor_link import SupervisorLink
from poolctl.platform import memory_file, name_process, read_sealed_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any

    from poolctl.config import Configuration, Marks, Reading, ServerConfig, Surroundings
    from poolctl.errors import PoolError

    Requests = SimpleQueue[tuple[wire.Message, list[int]]]

MOST_BYTES = 1 << 30
# Maximum number of readings kept for later requests about their files, users and programs.
MOST_KEPT = 3
_GARBAGE = 200_000


def main() -> None:
    """Answer the supervisor's requests until it orders the end, or keeper and supervisor are gone."""
    name_process("poolctl-config")
    link = SupervisorLink.inherited()
    requests: Requests = SimpleQueue()
    _thread.start_new_thread(_receive_requests, (link, requests))
    link.try_send({"t": "up"})
    # Neither imports nor values create cyclic garbage, and collections take a tenth of the time of the first answer.
    gc.set_threshold(_GARBAGE)
    disable_pydantic_plugins()
    from poolctl.config import Surroundings

    handler = ConfigRequestHandler()
    # Imports the validation and builds its models before the first request arrives.
    handler.added(Surroundings(), {}, "/", {})
    while True:
        message, fds = requests.get()
        answer(handler, link, message, fds)


def _receive_requests(link: SupervisorLink, requests: Requests) -> None:
    """Receive requests, and answer pings, while the main thread may be blocked; then exit, whatever it is doing."""
    while (received := link.wait_and_receive()) is not None:
        requests.put(received)
    os._exit(0)


def answer(
    handler: ConfigRequestHandler, link: SupervisorLink, message: wire.Message, fds: Sequence[int]
) -> None:
    """Answer one request. Raises OSError if there is no supervisor."""
    import pickle  # slow, and so after the first request has been asked for

    (file,) = fds
    try:
        request = read_sealed_file(file, wire.SEALS, MOST_BYTES)
    finally:
        os.close(file)
    content = b""
    try:
        name, *arguments = pickle.loads(request)
    except (ImportError, AttributeError):
        pass  # a supervisor of another version names modules that are missing here
    else:
        content = pickle.dumps(getattr(handler, name)(*arguments))
    # This process may have read files of two versions, and neither version can use values made by a mixture of both.
    version = bootstrap.installed_version()
    found = [memory_file("poolctl-answer", content, wire.SEALS)] if version == __version__ and content else []
    try:
        link.send({"id": message["id"], "version": version}, found)
    finally:
        for each in found:
            os.close(each)


class ConfigRequestHandler:
    """Handles the supervisor's requests, one public method each. Errors in a configuration are returned, not raised."""

    def __init__(self) -> None:
        self._kept: dict[int, Configuration] = {}

    def read(
        self, number: int, files: Sequence[str], env: Mapping[str, str] | None, access_log: bool
    ) -> Reading:
        """The servers and tables of these files, or only the problems if a file or server is invalid.

        A valid configuration is kept under `number` for later requests. With `env` None this process's environment is
        used. `access_log` is the default of http.access_log.
        """
        from poolctl.config import Reading, Surroundings, directory_of, load, marks_of
        from poolctl.errors import PoolError

        marks = marks_of(files)  # taken before reading, so that a change in between is found later
        try:
            config = load(files, env, access_log=access_log)
        except PoolError as error:
            return Reading(marks, error.to_list())
        if problems := [problem.to_dict() for problem in config.problems or config.startup_problems()]:
            return Reading(marks, problems)
        self._kept[number] = config
        if len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        settings = config.settings
        surroundings = Surroundings(config.defaults, directory_of(files[0]), settings.handlers)
        return Reading(
            marks, [], settings.name, list(config), surroundings, settings.port_range, config.tables,
            _config_file_by_server(config), [each.to_dict() for each in config.env_file_problems()],
        )  # fmt: skip

    def outside(self, number: int, names: Collection[str]) -> tuple[list[dict[str, Any]], list[str]] | None:
        """Check the files, users and programs to which the servers of a configuration refer.

        Return the problems of the servers in `names`, and the warnings about all servers. Return None if `read` keeps
        no configuration under `number` any more.
        """
        config = self._kept.get(number)
        if config is None:
            return None
        problems = [problem.to_dict() for problem in config.check_external(names=names)]
        return problems if names else [], [str(warning) for warning in config.warnings]

    def added(
        self,
        surroundings: Surroundings,
        table: Mapping[str, Any],
        base_dir: str,
        env: Mapping[str, str] | None,
    ) -> ServerConfig | PoolError:
        """Validate the table of a server that is in no file. Return the server, or the error if the table is invalid.

        The server inherits the defaults in `surroundings`. The server's paths are relative to `base_dir`. If `env` is
        None, the environment of the current process is used.
        """
        from poolctl.config import added_server
        from poolctl.errors import PoolError

        try:
            return added_server(surroundings, table, base_dir, os.environ if env is None else env)
        except PoolError as error:
            return error

    def origins(
        self, files: Sequence[str], env: Mapping[str, str] | None, marks: Marks, names: Sequence[str]
    ) -> dict[str, dict[str, str] | None]:
        """Return {server: {key: `FILE:LINE`}}: the place at which `files` set each key of the servers in `names`.

        Servers in no file are left out. Return {} if the files changed after `marks` were taken, or cannot be loaded.
        """
        from poolctl.config import changed_files, load
        from poolctl.errors import PoolError

        try:
            if changed_files(marks, files):
                return {}
            servers = {server.name: server for server in load(files, env)}
        except PoolError:
            return {}
        return {name: servers[name].origin for name in names if name in servers}


def _config_file_by_server(servers: Sequence[ServerConfig]) -> dict[str, str]:
    """Each server's file, by the server's name; empty if all servers are in one file."""
    origins = servers[0].origins if servers else None
    if origins is None or len(origins.documents) < 2:
        return {}
    return {server.name: origins.file_of(server.name) for server in servers}
