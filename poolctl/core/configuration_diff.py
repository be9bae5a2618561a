"""Computes the changes that a reload makes, from the current and the new configuration and the files that they name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType

from poolctl.config import Section, ServerConfig, certificate_validity, read_regular_truncated

from .server_state import NO_OVERRIDES, Overrides

# Keys that only the supervisor uses, or that only describe a server: a change needs no new process.
LIVE_KEYS = frozenset(
    {
        "depends_on", "disabled", "every", "expose", "health", "hooks", "labels", "limits.memory", "mandatory",
        "on_demand", "overlap", "preload", "ready_after", "recovery", "reload_signal", "restart", "scale",
        "socket_mode", "socket_owner", "start_timeout", "tags", "tls.warn_before", "watch", "workers",
    }
)  # fmt: skip
# Keys that decide who can connect to a Unix socket. The pool applies them itself.
_SOCKET_ACCESS = frozenset({"socket_mode", "socket_owner", "user"})
# Keys that running workers can reload.
_CERTIFICATE = frozenset({"tls.cert", "tls.key", "tls.ca", "tls.password_env", "tls"})


class Kind(StrEnum):
    """A kind of change."""

    ADD = "add"
    REMOVE = "remove"
    RESTART = "restart"  # the server's processes are replaced
    UPDATE = "update"  # applied to the running server
    OVERRIDE = "override"  # a live change is undone
    SIGNAL = "signal"  # the server is unchanged, was named, and gets its reload_signal


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one server; `keys` are the configuration keys that differ."""

    kind: Kind
    name: str
    bind: str
    keys: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class CurrentServer:
    """A current server: its configuration, changes made by commands, and digests of the files that it has read."""

    config: ServerConfig
    overrides: Overrides = NO_OVERRIDES
    added: bool = False
    files: Mapping[str, str] = field(default_factory=dict)


def planned_changes(
    running: Iterable[CurrentServer],
    written: Sequence[ServerConfig],
    files: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    missing: Collection[str] = (),
) -> list[Change]:
    """The changes that a reload makes, in the order of the configuration; servers removed from it come first.

    `written` are the servers of the configuration files. `files` has, by server name, the digests of the env and
    certificate files that they name (see `digests`). `missing` are the names of servers removed by a command.
    """
    current = {server.config.name: server for server in running}
    names = {server.name for server in written}
    changes = [_removal(server) for name, server in current.items() if name not in names]
    for server in written:
        before = current.get(server.name)
        if before is None and server.name in missing:
            message = "removed live, in the file: added again"
            changes.append(_change(Kind.OVERRIDE, server, ("name",), message))
        elif before is None:
            message = f"is new{', and starts on demand' * server.on_demand}"
            changes.append(_change(Kind.ADD, server, message=message))
        else:
            changes += server_changes(before, server, files.get(server.name, {}))
    return changes


def _change(kind: Kind, server: ServerConfig, keys: Sequence[str] = (), message: str = "") -> Change:
    return Change(kind, server.name, server.key, tuple(keys), message)


def _removal(before: CurrentServer) -> Change:
    config = before.config
    if before.added:
        message = "added live, not in the file: removed"
        return _change(Kind.OVERRIDE, config, ("name",), message)
    return _change(Kind.REMOVE, config, message="is not in the file any more")


def server_changes(before: CurrentServer, server: ServerConfig, files: Mapping[str, str]) -> list[Change]:
    """The changes that turn a current server into one with this configuration and these file digests."""
    confirmed = _confirmed_override_keys(before, server)
    keys = [key for key in differences(before.config, server) if key not in confirmed]
    for file_key, digest in files.items():
        is_listed = any(key.partition(".")[0] == file_key for key in keys)
        if before.files.get(file_key, digest) != digest and not is_listed:
            keys.append(file_key)
    restart_keys = [key for key in keys if not is_live(key, before.config, server)]
    changes: list[Change] = []
    if restart_keys:
        changes.append(_change(Kind.RESTART, server, tuple(keys), f"{key_list_text(restart_keys)} changed"))
    elif keys:
        changes.append(_change(Kind.UPDATE, server, tuple(keys), f"{key_list_text(keys)} changed"))
    return changes + _override_changes(before, server)


def _confirmed_override_keys(before: CurrentServer, server: ServerConfig) -> set[str]:
    """The keys (workers, disabled) with the same value in the file as in a command's override."""
    return {
        key
        for key, live, written in (
            ("workers", before.overrides.workers, _fixed_workers(server)),
            ("disabled", before.overrides.disabled, server.disabled),
        )
        if live is not None and live == written
    }


def _fixed_workers(server: ServerConfig) -> int | None:
    """The number of workers in the file; None if the server is scaled automatically."""
    return None if server.scale.is_automatic else server.scale.min


def _override_changes(before: CurrentServer, server: ServerConfig) -> list[Change]:
    overrides: list[tuple[str, str]] = []
    live = before.overrides
    if live.workers is not None and live.workers != (written := _fixed_workers(server)):
        in_file = "triggers" if written is None else str(written)
        overrides.append(("workers", f"workers: {live.workers} by scale, {in_file} in the file"))
    if live.disabled is not None and live.disabled != server.disabled:
        overrides.append(("disabled", "disabled live" if live.disabled else "enabled live"))
    if live.out:
        overrides.append(("drained", "drained"))
    return [_change(Kind.OVERRIDE, server, (key,), text) for key, text in overrides]


def differences(before: ServerConfig, after: ServerConfig) -> list[str]:
    """The keys whose values differ, in the order of their declaration. A key in a table is written as `http.loop`."""
    keys: list[str] = []
    for name in ServerConfig.model_fields:
        one, other = getattr(before, name), getattr(after, name)
        if name == "bind":
            if tuple(before.address) != tuple(after.address):  # a single address, or one for each IP family
                keys.append("bind")
        elif name == "expose" and before.derived_expose and after.derived_expose:
            continue
        elif one != other:
            keys += _differing_keys(name, one, other)
    return keys


def _differing_keys(name: str, one: object, other: object) -> list[str]:
    if isinstance(one, Section) and type(one) is type(other):
        nested = [
            key
            for field_name in type(one).model_fields
            if (a := getattr(one, field_name)) != (b := getattr(other, field_name))
            for key in _differing_keys(f"{name}.{field_name}", a, b)
        ]
        # The key `workers` sets both.
        return ["workers"] if nested == ["scale.min", "scale.max"] else nested or [name]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        changed = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        return [f"{name}.{key}" for key in changed]
    return [name]


def is_live(key: str, before: ServerConfig, after: ServerConfig) -> bool:
    """Whether a change of the key takes effect without starting a new process."""
    if key in _CERTIFICATE:
        # A worker decides at its start whether it speaks TLS, and whether it asks clients for certificates.
        asks_as_before = _asks_for_client_certificates(before) == _asks_for_client_certificates(after)
        loads_live = _loads_certificates_live(before) and _loads_certificates_live(after)
        return loads_live and (asks_as_before or key != "tls.ca")
    return key in LIVE_KEYS or key.partition(".")[0] in LIVE_KEYS


def changes_socket_access(keys: Iterable[str]) -> bool:
    """Whether a change of these keys may change the mode or the owner of a Unix socket's file."""
    return not _SOCKET_ACCESS.isdisjoint(keys)


def changes_certificates(keys: Iterable[str]) -> bool:
    """Whether a change of these keys may change a server's certificates."""
    return any(key.partition(".")[0] == "tls" for key in keys)


def _loads_certificates_live(config: ServerConfig) -> bool:
    return bool(config.tls) and config.tls is not True and not config.command


def _asks_for_client_certificates(config: ServerConfig) -> bool:
    return bool(getattr(config.tls, "ca", None))


def key_list_text(keys: Sequence[str]) -> str:
    """The first four keys as text, followed by the number of further keys, if any."""
    shown = ", ".join(keys[:4])
    return f"{shown} and {len(keys) - 4} more" if len(keys) > 4 else shown


# The files that servers name.


def read_digests_by_key(config: ServerConfig) -> dict[str, str]:
    """The digests of the files that the server names: `{"env_file": …, "tls": …}`. Blocks on the disk.

    A changed file counts as a difference although no key has changed.
    """
    digests: dict[str, str] = {}
    if config.env_file:
        digests["env_file"] = digest_of(config.env_file_paths)
    tls = config.tls
    if tls and tls is not True:
        digests["tls"] = digest_of(filter(None, (tls.cert, tls.key or tls.cert, tls.ca)))
    return digests


def read_certificate_expiry(config: ServerConfig) -> float | None:
    """The expiry time of the server's certificate, in seconds since the epoch. Blocks on the disk.

    None without TLS, and for a path that cannot be read or is not a regular file: opening a FIFO would wait
    for its writer.
    """
    if not config.tls or config.tls is True:
        return None
    try:
        times = certificate_validity(
            read_regular_truncated(config.tls.cert).decode("ascii", errors="replace")
        )
    except OSError:
        return None
    return None if times is None else times[1].timestamp()


def digest_of(paths: Iterable[str]) -> str:
    """A digest of the combined contents of these files. Blocks on the disk."""
    import hashlib  # imported late: it loads OpenSSL, and most servers name no files

    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        try:
            digest.update(b"\1" + read_regular_truncated(path))
        except OSError:
            digest.update(b"\0")  # reported by the worker that reads the file
    return digest.hexdigest()


def expired_message(config: ServerConfig, expired: float) -> str:
    """The message about a certificate that expired at the time `expired`, in seconds since the epoch."""
    tls = config.tls
    file = tls.cert if tls and tls is not True else ""
    return f"{file}: the certificate expired on {date_text(expired)}; renew the file, then poolctl reload"


def date_text(seconds: float) -> str:
    """The date (YYYY-MM-DD) in UTC of a time in seconds since the epoch."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
