"""The input of a check (files of machine and pool, and the supervisor) and its result."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poolctl.address import Address
from poolctl.cli.pool_ref import PoolRef
from poolctl.config import named_addresses, scalar_bind_addresses
from poolctl.control.answers import ErrorEntry, Item, PingResult, Result, StatusResult, error_entries
from poolctl.control.client import Client, NoSupervisor
from poolctl.control.gateway_answers import RoutesResult
from poolctl.errors import ControlError, PoolError
from poolctl.json_form import Table
from poolctl.routing.route_report import RouteReport
from poolctl.runners.local.memory_kills import control_groups
from poolctl.states import ENDED

if TYPE_CHECKING:
    from poolctl.config import Configuration, ServerConfig

_ANSWER_SECONDS = 3.0
# The pool's processes other than workers: keeper, supervisor, logger and zygote.
_OWN_PROCESSES = 4
OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine as the checks read it: files below `root`, and the user and limits of this process."""

    root: str = ""
    uid: int = field(default_factory=os.geteuid)
    open_files: tuple[int, int] = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NOFILE))
    max_processes: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_NPROC)[0])

    def text(self, path: str) -> str:
        """The content of a system file, "" if it cannot be read."""
        try:
            with open(f"{self.root}{path}", encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        """The number in a system file; None for any other content, such as `max`, and if it cannot be read."""
        text = self.text(path)
        return int(text) if text.isdecimal() else None

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(f"{self.root}{path}")

    def control_groups(self, controller: str) -> Iterator[str]:
        """The directories of this process's control group and of its ancestors, for `text` and `number`."""
        groups = control_groups(controller, f"{self.root}/sys/fs/cgroup", f"{self.root}/proc/self/cgroup")
        return (directory.removeprefix(self.root) for directory in groups)


class CheckContext:
    """The input of a check: reading from it never raises.

    Data that cannot be read is empty, and `problems` or `supervisor_problem` give the reason. `pool` is None if no file
    was given or found. `items` are the servers of the running supervisor.
    """

    def __init__(self, pool: PoolRef | None, env: Mapping[str, str], machine: Machine | None = None) -> None:
        self.env = env
        self.machine = machine or Machine()
        self.pool = pool
        self.config: Configuration | None = None
        self.problems: Sequence[ErrorEntry] = []
        self.about: PingResult | None = None
        self.items: Sequence[Item] = ()
        self.failures: dict[str, ErrorEntry] = {}
        self.gateway: Table | None = None
        self.routes: Sequence[RouteReport] = ()
        self.changed: Table | None = None  # changed files not yet read by the pool
        self.supervisor_problem = ""
        if pool is not None:
            self._load(pool)
            self._read_state(pool)

    def _load(self, pool: PoolRef) -> None:
        from poolctl.config import load

        try:
            self.config = load(pool.files, self.env)
            problems = [*self.config.problems, *self.config.check_external()]
            self.problems = [ErrorEntry.of(error) for error in problems]
        except PoolError as error:
            self.problems = error_entries(error)

    def _read_state(self, pool: PoolRef) -> None:
        if not os.path.exists(pool.socket):
            return
        client = Client(pool.socket, silence_seconds=_ANSWER_SECONDS)
        try:
            self.about = client.ping()
            if self.about.reading:
                self.supervisor_problem = "the supervisor is still reading the files"
                return
            listed = client.ask(Result, "list", {"options": {"counts": True}})
            self.items, self.gateway, self.changed = listed.items, listed.gateway, listed.changed
            if self.gateway is not None:
                self.routes = client.ask(RoutesResult, "routes").items
            self.failures = {error.name: error for error in client.ask(StatusResult, "status").errors}
        except NoSupervisor:
            return  # leftovers of a dead pool have their own check
        except ControlError as error:
            self.supervisor_problem = error.message

    @property
    def servers(self) -> Sequence[ServerConfig]:
        """The configured servers that are not disabled."""
        return [server for server in self.config or () if not server.disabled]

    @property
    def processes(self) -> int:
        """The number of processes of the pool when every server runs its maximum number of workers."""
        return _OWN_PROCESSES + sum(server.scale.max for server in self.servers)

    @property
    def served(self) -> set[str]:
        """The names of the running supervisor's servers that have not ended, so that it holds their sockets."""
        return {item.name for item in self.items if item.state not in ENDED}

    @property
    def addresses(self) -> dict[str, Address]:
        """Return the addresses to check, by server name or by table, such as [gateway]. `auto` addresses are omitted.

        Tables are included only if no supervisor answers.
        """
        addresses = {server.name: server.address for server in self.servers if not server.address.auto}
        if self.config is not None and self.about is None:
            tables = self.config.tables
            addresses |= {f"[{name}]": address for name, address in scalar_bind_addresses(tables)}
            for name, address in named_addresses(tables):
                if address is not None and addresses.get(name, address) == address:
                    addresses[name] = address
                elif address is not None:  # a table may have several
                    addresses[f"{name} {address.key}"] = address
        return addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """A check's result. `fix` is "" if `status` is OK. `name` equals `check`, since all JSON items have a `name`."""

    name: str
    check: str
    status: str
    message: str
    fix: str

    def __repr__(self) -> str:
        return f"{self.status} {self.check}: {self.message}" + (f" ({self.fix})" if self.fix else "")


def ok(check: str, message: str) -> CheckResult:
    """A result without a problem."""
    return CheckResult(name=check, check=check, status=OK, message=message, fix="")


def warning(check: str, message: str, fix: str) -> CheckResult:
    """Return a CheckResult with status WARNING, for something that may become a problem."""
    return CheckResult(name=check, check=check, status=WARNING, message=message, fix=fix)


def problem(check: str, message: str, fix: str) -> CheckResult:
    """The result for a problem that prevents servers from starting or from serving correctly."""
    return CheckResult(name=check, check=check, status=PROBLEM, message=message, fix=fix)
