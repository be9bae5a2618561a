"""The process that serves the dashboard, and the settings that it gets, with the token that opens the page."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Self

from poolctl.address import parse
from poolctl.control.pool_paths import SOCKET_NAME
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.runners.process_link import Link

from ..sidecar import SidecarProcess

if TYPE_CHECKING:
    from poolctl.config import Dashboard

    from ..active_configuration import PoolEnvironment


TOKEN_FILE = "dashboard.token"
ENDED_FILE = "dashboard.ended"
_TOKEN_BYTES = 32


class Settings(NamedTuple):
    """`bind` is canonical; `mark` changes with any setting, which needs another process; `url` is for a browser."""

    bind: str
    values: Table
    mark: str
    url: str


def settings_of(table: Dashboard, environment: PoolEnvironment) -> Settings:
    """The settings of the process that serves this pool's dashboard.

    Blocks on the disk; raises ServerError when there is no token, or its certificate cannot be used.
    """
    configuration, directory, state_directory = (
        environment.configuration,
        environment.directory,
        environment.state_directory,
    )
    env = configuration.environment
    address = parse(table.bind)
    values: Table = {
        "socket_path": os.path.join(directory, SOCKET_NAME),
        "logs_directory": os.path.join(state_directory, "logs"),
        "key": os.path.basename(directory),
        "name": configuration.name,
        "token": _token(table, state_directory, env),
        "hosts": list(table.hosts) + ([] if address.kind == "unix" else [address.host.strip("[]")]),
        "tls": None,
        "ended_path": os.path.join(state_directory, ENDED_FILE),
    }
    if table.tls:
        # It loads OpenSSL, which most supervisors do without.
        from poolctl.config.checks.certificate_checks import check_certificates

        tls = table.tls
        problems, _ = check_certificates(tls, env, datetime.now(UTC))
        for finding in problems:
            raise ServerError(f"{'.'.join(map(str, finding.path))}: {finding.message}", hint=finding.hint)
        # Never None: OpenSSL would ask a terminal.
        password = env.get(tls.password_env, "") if tls.password_env else ""
        values["tls"] = {"key": None, "ca": None, "ciphers": None, **tls.to_dict(), "password": password}
    mark = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return Settings(address.key, values, mark, url_of(table))


def url_of(table: Dashboard) -> str:
    """Where a browser on this machine finds the page; of a Unix socket its address, for a proxy."""
    address = parse(table.bind)
    if address.kind == "unix":
        return address.key
    return f"{'https' if table.tls else 'http'}://{address.nearby.key}/"


def _token(table: Dashboard, state_directory: str, env: Mapping[str, str]) -> str:
    if table.token_env:
        token = env.get(table.token_env, "").strip()
        hint = f"export {table.token_env}=… before poolctl start"
        where = f"the environment variable {table.token_env}"
    else:
        where = table.token_file or os.path.join(state_directory, TOKEN_FILE)
        hint = f"write the token into {where}"
        if not table.token_file:
            _make(where)
        try:
            with open(where, encoding="utf-8") as file:
                token = file.read(65536).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServerError(f"its token cannot be read: {error}", hint=hint) from None
    if not token:
        raise ServerError(f"it has no token: {where} is empty", hint=hint)
    return token


def _make(path: str) -> None:
    """Make a token, once; anyone who can read the file may do what the page does."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
    except FileExistsError:
        return
    except OSError as error:
        raise ServerError(f"its token cannot be written: {error}", hint="name one: token_file") from None


class DashboardProcess(SidecarProcess):
    """The process that serves the page."""

    part, label, output = "web", "the dashboard", "dashboard.log"

    @classmethod
    async def start(
        cls,
        keeper: Link,
        directory: str,
        settings: Settings,
        mark: str,
        sockets: Sequence[socket.socket],
    ) -> Self:
        """Start a process and wait until it serves. Raises LinkLost or TimeoutError, and ends it, when it does not."""
        process = await cls.spawn(keeper, directory, mark)
        begin = {"t": "begin", "bind": settings.bind, "directory": directory, "settings": settings.values}
        process.link.send(begin, [sock.fileno() for sock in sockets])
        await process.ready(directory)
        return process
