"""What the dashboard's process is told of its pool, and the token that opens it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from poolctl.address import parse
from poolctl.control.directory import SOCKET_NAME
from poolctl.errors import ServerError

if TYPE_CHECKING:
    from poolctl.config import Dashboard

TOKEN_FILE = "dashboard.token"
ENDED_FILE = "dashboard.ended"
_TOKEN_BYTES = 32


class Told(NamedTuple):
    """`bind` is canonical; `mark` changes with whatever needs another process; `url` is where a browser finds it."""

    bind: str
    settings: dict[str, Any]
    mark: str
    url: str


def settings_of(
    table: Dashboard, *, directory: str, state_directory: str, name: str, env: Mapping[str, str]
) -> Told:
    """What a process of this pool's dashboard is told. Blocks on the disk; ServerError when there is no token."""
    address = parse(table.bind)
    settings: dict[str, Any] = {
        "socket_path": os.path.join(directory, SOCKET_NAME),
        "logs_directory": os.path.join(state_directory, "logs"),
        "key": os.path.basename(directory),
        "name": name,
        "token": _token(table, state_directory, env),
        "hosts": list(table.hosts) + ([] if address.kind == "unix" else [address.host.strip("[]")]),
        "tls": None,
        "ended_path": os.path.join(state_directory, ENDED_FILE),
    }
    if table.tls:
        tls = table.tls
        # Never None: OpenSSL would ask a terminal.
        password = env.get(tls.password_env, "") if tls.password_env else ""
        settings["tls"] = {**tls.model_dump(exclude={"password_env"}), "password": password}
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Told(address.key, settings, mark, url_of(table))


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
    """A token of our own, once; whoever reads it may do what the page does."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n")
    except FileExistsError:
        return
    except OSError as error:
        raise ServerError(f"its token cannot be written: {error}", hint="name one: token_file") from None
