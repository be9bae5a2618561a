"""Reads and validates the configuration files in a thread, so that the supervisor's event loop does not block."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from poolctl import __version__, bootstrap
from poolctl.config import (
    Configuration,
    Marks,
    ServerConfig,
    Surroundings,
    Tables,
    added_server,
    changed_files,
    directory_of,
    load,
    marks_of,
)
from poolctl.control.answers import ErrorEntry, Result, error_entries, failure
from poolctl.daemon_threads import complete
from poolctl.errors import PoolError, PoolValidateError
from poolctl.exit_codes import CONFLICT
from poolctl.feature import features

Answer = TypeVar("Answer")

# How long a request may wait for a disk or a name service, without using processor time.
_STALLED_SECONDS = 10.0
# Programs that are run as a check, such as HAProxy with its file, may take longer.
_CHECK_SECONDS = 60.0
_CHECKS = 20


class ReaderFailed(Exception):
    """The files cannot be read now, whatever is in them. `installed` is poolctl's version on disk if it differs."""

    def __init__(self, message: str, hint: str, installed: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.installed = installed

    @property
    def result(self) -> Result:
        """Return the failed command's result, whose only error is this failure and whose exit code is 8."""
        return Result(errors=(failure(PoolValidateError, str(self), self.hint),), exit_code=CONFLICT)


@dataclass
class Reading:
    """What was read from the files: the servers in file order, or the problems.

    `name` and `port_range` come from [pool]; the pool has a name of its own if [pool] has none.
    """

    name: str = ""
    servers: list[ServerConfig] = field(default_factory=list)
    problems: list[ErrorEntry] = field(default_factory=list)
    surroundings: Surroundings = field(default_factory=Surroundings)
    port_range: tuple[int, int] = (0, 0)
    tables: Tables = field(default_factory=Tables)
    marks: Marks | None = None
    files: Mapping[str, str] = field(default_factory=dict)  # the file of each server, if there are several
    configuration: Configuration | None = None  # None with `problems`
    # Problems of env files: a pool does not start with them, but a running pool continues.
    unreadable: list[ErrorEntry] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # warnings; see ActiveConfiguration.check_external

    @property
    def is_empty(self) -> bool:
        """Whether no server and no route was read."""
        return not (self.servers or self.tables.routes)


class ConfigurationReader:
    """Reads files for the supervisor, one request after another. Must be used on the running event loop.

    A request that hangs on a disk is abandoned with its thread; the next request gets a new thread.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def read(self, files: Sequence[str], env: Mapping[str, str] | None, *, access_log: bool) -> Reading:
        """Read the files; return the configuration, or its problems.

        `${VAR}` refers to `env`, or to this process's environment if `env` is None. `access_log` is the default of
        http.access_log. Raises ReaderFailed.
        """
        return await self._call(lambda: _read(files, env, access_log), _STALLED_SECONDS, files)

    async def check_external(
        self, configuration: Configuration, names: Collection[str]
    ) -> tuple[list[ErrorEntry], list[str]]:
        """Check the files, users and programs that the servers called `names` refer to; return problems and warnings.

        The warnings are about all servers of the configuration. Raises ReaderFailed.
        """

        def check() -> tuple[list[ErrorEntry], list[str]]:
            problems = [*map(ErrorEntry.of, configuration.check_external(names=names))]
            return problems if names else [], [str(warning) for warning in configuration.warnings]

        return await self._call(check, _CHECK_SECONDS, configuration.files)

    async def server_of_table(
        self,
        surroundings: Surroundings,
        table: Mapping[str, object],
        base_dir: str,
        env: Mapping[str, str] | None,
    ) -> ServerConfig:
        """Validate the `table` of the command `add`; return the server. Raises PoolValidateError, ReaderFailed.

        The server inherits the defaults in `surroundings`. Paths in the table are relative to `base_dir`.
        """
        env = os.environ if env is None else env
        return await self._call(
            lambda: added_server(surroundings, table, base_dir, env), _STALLED_SECONDS, [base_dir]
        )

    async def origins(
        self, files: Sequence[str], env: Mapping[str, str] | None, marks: Marks, names: Sequence[str]
    ) -> dict[str, dict[str, str] | None]:
        """Return the FILE:LINE where each key of the named servers is set, by server and key.

        Returns {} if the files cannot be loaded, or differ from the state recorded in `marks`. Raises ReaderFailed.
        """

        def find() -> dict[str, dict[str, str] | None]:
            if changed_files(marks, files):
                return {}
            try:
                config = load(files, env)
            except PoolError:
                return {}
            return {server.name: config.origin_of(server) for server in config if server.name in names}

        return await self._call(find, _STALLED_SECONDS, files)

    async def _call(
        self, work: Callable[[], Answer], stalled_seconds: float, places: Sequence[str]
    ) -> Answer:
        async with self._turn:
            future: Future[Answer] = Future()
            call = partial(_perform_unless_replaced, work)
            thread = threading.Thread(
                target=complete, args=(future, call), name="poolctl-reader", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                message = "the files cannot be read: the machine refuses a thread"
                raise ReaderFailed(message, "see the limits of processes: ulimit -u, pids.max") from None
            waited = asyncio.ensure_future(asyncio.wrap_future(future))
            try:
                if not await _finishes(waited, thread, stalled_seconds):
                    message = (
                        f"{' and '.join(places)} cannot be read: nothing was read for {stalled_seconds:g} s"
                    )
                    hint = (
                        "a disk or name service that does not answer? poolctl validate reads the same files"
                    )
                    raise ReaderFailed(message, hint)
                return waited.result()
            except (PoolError, ReaderFailed):
                raise
            except Exception as error:
                hint = "if poolctl is being installed at this moment, try again"
                raise ReaderFailed(f"the files cannot be read: {error!r}", hint) from error
            finally:
                waited.cancel()


def _perform_unless_replaced(work: Callable[[], Answer]) -> Answer:
    """Do the work. Raises ReaderFailed if another version is installed: new processes would run that version."""
    installed = bootstrap.installed_version()
    if installed not in ("?", __version__):
        message = f"poolctl {installed} is installed, and this pool runs {__version__}"
        raise ReaderFailed(message, "poolctl upgrade", installed)
    return work()


async def _finishes(answer: asyncio.Future[Answer], thread: threading.Thread, stalled_seconds: float) -> bool:
    """Wait for the answer of the thread; False if the thread uses no processor time for `stalled_seconds`."""
    used, stalled = -1.0, 0
    # Checks are counted, not seconds: a pause of the machine must not count.
    while stalled < _CHECKS:
        await asyncio.wait({answer}, timeout=stalled_seconds / _CHECKS)
        if answer.done():
            return True
        try:
            before, used = used, time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))
        except OSError:  # the thread is just ending
            continue
        stalled = stalled + 1 if used == before else 0
    return False


def modules() -> list[str]:
    """The modules that only some files need; imported early, because poolctl's files may be replaced later."""
    parts = (
        (feature.package, part)
        for feature in features()
        for part in (*feature.tables.values(), *([feature.rules] if feature.rules else []))
    )
    return [
        "poolctl.config.checks.external_checks",
        "poolctl.config.files.yaml_parser",
        *dict.fromkeys(f"{package}.{part.partition(':')[0]}" for package, part in parts),
    ]


def _read(files: Sequence[str], env: Mapping[str, str] | None, access_log: bool) -> Reading:
    marks = marks_of(files)  # taken before reading, so that a change in between is found later
    try:
        config = load(files, env, access_log=access_log)
    except PoolError as error:
        return Reading(problems=[*error_entries(error)], marks=marks)
    if problems := config.problems or config.startup_problems():
        return Reading(problems=[*map(ErrorEntry.of, problems)], marks=marks)
    settings = config.settings
    return Reading(
        settings.name or "",
        list(config),
        surroundings=Surroundings(config.defaults, directory_of(files[0]), settings.handlers),
        port_range=settings.port_range,
        tables=config.tables,
        marks=marks,
        files=config.file_of_each_server(),
        configuration=config,
        unreadable=[*map(ErrorEntry.of, config.env_file_problems())],
    )
