"""`poolctl export`: writes the pool as configuration for another system."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.offline import load
from poolctl.cli.options import examples, forms, one_of, with_options
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.config import (
    ServerConfig,
    directory_of,
    maximum_pool_stop_seconds,
    unset_variables,
)
from poolctl.control.pool_paths import RUNTIME_VARIABLE, STATE_VARIABLE, runtime_root_candidates
from poolctl.exit_codes import CONFLICT, FAILED, INVALID_CONFIGURATION, NOT_PERMITTED, USAGE
from poolctl.feature import features
from poolctl.platform import user_name

VALUES, REFERENCE = "values", "reference"
KUBERNETES = "kubernetes"
SYSTEMS = ("systemd", *(name for feature in features() for name in feature.exports))
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Wanted:
    """The system to export the pool for, and where to write its files."""

    system: Annotated[
        str, typer.Argument(metavar="SYSTEM", help=f"{' or '.join(SYSTEMS)}.", **one_of(SYSTEMS))
    ]
    into: Annotated[
        Path | None,
        typer.Option(
            "--directory", metavar="DIRECTORY", help="Write the files here instead of printing them."
        ),
    ] = None
    for_user: Annotated[
        bool, typer.Option("--user", help="Write units for the user's own service manager.")
    ] = False
    listen: Annotated[
        list[str] | None,
        typer.Option("--listen", metavar="NAME=ADDRESS", help="Address that systemd opens for fd:NAME."),
    ] = None
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only compare --directory with what would be written; exit 1 if it differs."
        ),
    ] = False
    secrets: Annotated[
        str,
        typer.Option(
            "--secrets",
            metavar="values|reference",
            help="Of kubernetes: write values of the environment, or only the names of Secrets.",
            **one_of((VALUES, REFERENCE)),
        ),
    ] = VALUES


ExportForm = Annotated[
    str | None,
    forms(
        "json",
        "jsonl",
        "name",
        fields=("name", "text"),
        help="json, jsonl, name, or FIELD,FIELD…; default: the files' texts",
        hint="--directory {} writes the files there",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The exported files: texts by file name. The first line of each contains `made_by`, to recognize them.

    `private` names the files with secrets, which only their owner may read. With `is_whole`, other files in the
    directory with the same `made_by` are stale, and are removed.
    """

    texts: Mapping[str, str]
    made_by: str
    next_commands: str  # to run once the files are written
    install_commands: str = ""  # to run after the files were only printed: these commands also write them
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    private: Collection[str] = ()
    is_whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file for another system. `name` is its name or, once it has been written, its path."""

    name: str
    text: str


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl export systemd --directory /etc/systemd/system",
        *(f"poolctl export {name}" for name in SYSTEMS[1:]),
    ),
)
@with_options
def export(place: Place, wanted: Wanted, output: ExportForm = None) -> Outcome:
    """Write the pool as files for another system."""
    system = wanted.system
    if wanted.check and not wanted.into:
        raise UsageError("--check needs --directory", hint="--directory DIRECTORY names the earlier export")
    if wanted.secrets != VALUES and system != KUBERNETES:
        raise UsageError("--secrets is for kubernetes", hint=f"poolctl export {system}, without --secrets")
    make = next(
        (feature.load(feature.exports[system]) for feature in features() if system in feature.exports), _units
    )
    files: Files = make(place, wanted)
    if wanted.into:
        outcome = _write_files(str(wanted.into), files, only_check=wanted.check)
    else:
        outcome = Outcome([ExportedFile(name=name, text=text) for name, text in files.texts.items()])
        if output is None:
            outcome.text = "\n".join(f"# {name}\n{text}" for name, text in files.texts.items())
            outcome.is_file = True
            if files.install_commands and not place.quiet:
                sys.stderr.write(f"to install: {files.install_commands}\n")
    outcome.warnings += files.warnings
    outcome.notes += files.notes
    return outcome


def refuse_systemd_options(wanted: Wanted) -> None:
    """Raise UsageError for an option that only systemd units use."""
    for option, value in (("--user", wanted.for_user), ("--listen", wanted.listen)):
        if value:
            hint = f"poolctl export {wanted.system}, without {option}"
            raise UsageError(f"{option} is for systemd", hint=hint)


def _units(place: Place, wanted: Wanted) -> Files:
    from poolctl.supervisor.active_configuration import default_name

    ref = find_pool(place)
    config = load(ref)
    name = config.settings.name or default_name(ref.files[0])
    listen = {}
    for pair in wanted.listen or []:
        key, equals, address = pair.partition("=")
        if not (equals and key and address):
            raise UsageError(f"--listen: {pair!r} is not NAME=ADDRESS", hint="--listen web=127.0.0.1:8080")
        listen[key.removeprefix("fd:")] = address
    seconds = config.tables.stop_seconds
    script = os.path.join(os.path.dirname(sys.executable), "poolctl")
    command = [script] if os.path.exists(script) else [sys.executable, "-m", "poolctl"]
    user = user_name(os.geteuid()) if os.geteuid() else ""
    of_user = wanted.for_user
    runtime = runtime_root_candidates({})[0]
    pool = ServicePool(name, ref.files, list(config), command, os.environ, listen, user, seconds, runtime)
    try:
        texts = units(pool, of_user=of_user)
    except ValueError as error:
        raise Failure(Outcome.failed(FAILED, str(error))) from None
    systemctl = "systemctl --user" if of_user else "sudo systemctl" if user else "systemctl"
    commands = f"{systemctl} daemon-reload && {systemctl} enable --now {' '.join(texts)}"
    unit_directory = "~/.config/systemd/user" if of_user else "/etc/systemd/system"
    # Only root may write into the directory of the system's units.
    target_directory = str(wanted.into or ("units" if user and not of_user else unit_directory))
    if os.path.abspath(os.path.expanduser(target_directory)) != os.path.expanduser(unit_directory):
        copy = f"mkdir -p {unit_directory} && cp" if of_user else "sudo cp" if user else "cp"
        paths = shlex.join(os.path.normpath(os.path.join(target_directory, name)) for name in texts)
        commands = f"{copy} {paths} {unit_directory} && {commands}"
    if of_user:
        commands += " && loginctl enable-linger"  # else the pool ends when the user logs out
    words = [*command, *(word for file in ref.files for word in ("-c", file)), "export", "systemd"]
    words += [*(["--user"] if of_user else []), *(f"--listen={pair}" for pair in wanted.listen or [])]
    install = f"{shlex.join(words)} --directory {target_directory} && {commands}"
    warnings = []
    if missing := missing_variables(pool):
        file = texts[next(iter(texts))].partition("EnvironmentFile=-")[2].partition("\n")[0]
        warnings = [f"the service lacks these variables: {', '.join(missing)}; put them into {file}"]
    return Files(
        texts=texts,
        made_by=MADE_BY,
        next_commands=commands,
        install_commands=install,
        warnings=warnings,
    )


def _write_files(directory: str, files: Files, *, only_check: bool) -> Outcome:
    paths = {os.path.normpath(os.path.join(directory, name)): text for name, text in files.texts.items()}
    private = {os.path.normpath(os.path.join(directory, name)) for name in files.private}
    try:
        stale = _stale_files(directory, files, paths) if files.is_whole else []
        if only_check:
            return _compare(paths, stale)
        foreign = [path for path in paths if os.path.lexists(path) and not is_made_by(path, files.made_by)]
        if foreign:
            hint = "remove it, or write into another directory"
            raise Failure(Outcome.failed(CONFLICT, f"{foreign[0]} was not made by this export", hint))
        os.makedirs(directory, exist_ok=True)
        for path, text in paths.items():
            _write(path, text, is_private=path in private)
        for path in stale:
            os.unlink(path)
    except OSError as error:
        raise Failure(Outcome.failed(FAILED, f"cannot write {error.filename}: {error.strerror}")) from None
    exported = [ExportedFile(name=path, text=text) for path, text in paths.items()]
    removed = f", removed {', '.join(stale)}" if stale else ""
    return Outcome(exported, message=f"wrote {', '.join(paths)}{removed}; next: {files.next_commands}")


def _stale_files(directory: str, files: Files, paths: Collection[str]) -> list[str]:
    """Files of an earlier export, with the same file name extensions, that this export does not write."""
    extensions = {os.path.splitext(name)[1] for name in files.texts}
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    existing = [os.path.normpath(os.path.join(directory, name)) for name in names]
    return [
        path
        for path in existing
        if os.path.splitext(path)[1] in extensions and path not in paths and is_made_by(path, files.made_by)
    ]


def _compare(paths: Mapping[str, str], stale: Sequence[str]) -> Outcome:
    """The outcome of `--check`: an error for each file that an export would change, write or remove."""
    differences = [f"{path} is of a former export; the file has it no more" for path in stale]
    for path, text in paths.items():
        if not os.path.isfile(path):
            differences.append(f"{path} is missing")
            continue
        with open(path, "rb") as file:
            if file.read() != _encoded(text):
                differences.append(f"{path} differs")
    if differences:
        hint = "run the same command without --check"
        errors = [error(FAILED, message, hint) for message in differences]
        return Outcome(errors=errors, exit_code=FAILED)
    return Outcome(message=f"{len(paths)} file{'s' * (len(paths) != 1)}, nothing to change")


def _write(path: str, text: str, *, is_private: bool) -> None:
    # Make the file private before secrets are written, even if it existed with other permissions.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600 if is_private else 0o666), "wb") as file:
        if is_private:
            os.fchmod(file.fileno(), 0o600)
        file.truncate()
        file.write(_encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def is_made_by(path: str, words: str) -> bool:
    """Whether the first line of the file contains these words. Raises OSError."""
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return words in file.readline()


MADE_BY = "Made by `poolctl export systemd`."
# A generous time for everything except stopping the servers.
_MARGIN_SECONDS = 15
# A hung supervisor is replaced after 15 s; systemd acts only if that fails.
_WATCHDOG_SECONDS = 60
_PASSED_VARIABLES = (RUNTIME_VARIABLE, STATE_VARIABLE, "VIRTUAL_ENV")
# Exit codes that a restart cannot fix.
_PERMANENT_FAILURES = (USAGE, INVALID_CONFIGURATION, NOT_PERMITTED, CONFLICT)
# Options that do not restrict files, devices and set-user-ID programs, which workers may need.
_HARDENING = (
    "ProtectKernelModules", "ProtectKernelLogs", "ProtectKernelTunables", "ProtectControlGroups", "ProtectHostname",
    "LockPersonality", "RestrictRealtime",
)  # fmt: skip
BACKLOG = 2048
STORED_DESCRIPTORS = 4096


class ServicePool(NamedTuple):
    """Values for a pool's systemd units. `poolctl` is the program to run; `listen` maps `fd:` names to addresses."""

    name: str
    files: Sequence[str]
    servers: Sequence[ServerConfig]
    poolctl: Sequence[str]
    env: Mapping[str, str]
    listen: Mapping[str, str]
    user: str = ""  # the user that runs the service, "" for root
    tables_seconds: float = 0.0  # how long a stop may take when every server has been stopped
    runtime_directory: str = ""  # of the user's pools, where systemd makes it


def units(pool: ServicePool, *, of_user: bool) -> dict[str, str]:
    """The systemd unit files, text by name. `of_user`: for `systemctl --user`. ValueError for unusable values."""
    stem = unit_name(f"poolctl-{pool.name}")
    sockets = _socket_units(pool, stem)
    return {f"{stem}.service": _service_unit(pool, list(sockets), of_user=of_user), **sockets}


def missing_variables(pool: ServicePool) -> list[str]:
    """The variables that the files use without a default and that the systemd unit does not set."""
    return [name for name in unset_variables(pool.files) if name not in _PASSED_VARIABLES]


def _service_unit(pool: ServicePool, sockets: list[str], *, of_user: bool) -> str:
    env_directory = "%h/.config/poolctl" if of_user else "/etc/poolctl"
    files = [word for file in pool.files for word in ("-c", file)]
    unit = [("Description", escape_unit_value(f"Pool of HTTP servers: {pool.name}"))]
    if not of_user:
        unit += [("Wants", "network-online.target"), ("After", "network-online.target")]
    service = [
        ("#", "Ready when every enabled server has answered; `systemctl status` names those that have not."),
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("#", "A restart of the unit keeps the pool's sockets here: connections wait, and none is refused."),
        ("FileDescriptorStoreMax", str(STORED_DESCRIPTORS)),
        ("ExecStart", systemd_command_line([*pool.poolctl, *files, "run"])),
        ("ExecReload", systemd_command_line([*pool.poolctl, *files, "reload"])),
        ("WorkingDirectory", escape_unit_value(directory_of(pool.files[0]) or "/")),
        *(_user_entries(pool) if pool.user and not of_user else ()),
        *(
            ("Environment", quote_unit_word(f"{name}={pool.env[name]}"))
            for name in _PASSED_VARIABLES
            if pool.env.get(name)
        ),
        *([("EnvironmentFile", f"-{env_directory}/{unit_name(pool.name)}.env")] if missing_variables(pool) else []),
        *([("Sockets", " ".join(sockets))] if sockets else []),
        ("#", "The pool stops its servers itself, in order; processes that remain are then killed."),
        ("KillMode", "mixed"),
        ("TimeoutStopSec", str(stop_seconds(pool.servers, pool.tables_seconds))),
        ("#", "A server that fails to start does not affect the others; each has its own start_timeout."),
        ("TimeoutStartSec", "infinity"),
        ("Restart", "on-failure"),
        ("RestartSec", "1"),
        ("RestartPreventExitStatus", " ".join(map(str, _PERMANENT_FAILURES))),
        ("WatchdogSec", str(_WATCHDOG_SECONDS)),
        ("#", "The pool replaces a worker that the kernel killed for its memory."),
        ("OOMPolicy", "continue"),
        ("SyslogIdentifier", unit_name(f"poolctl-{pool.name}")),
        *(() if of_user else ((name, "yes") for name in _HARDENING)),
    ]  # fmt: skip
    wanted_by = "default.target" if of_user else "multi-user.target"
    comments = [MADE_BY, "The pool: " + ", ".join(re.sub(r"[\x00-\x1f]", "?", file) for file in pool.files)]
    return render(comments, [("Unit", unit), ("Service", service), ("Install", [("WantedBy", wanted_by)])])


def _user_entries(pool: ServicePool) -> Iterable[tuple[str, str]]:
    yield "User", escape_unit_value(pool.user)
    if pool.runtime_directory and not pool.env.get(RUNTIME_VARIABLE):
        yield "#", "For the control socket: /run/user/UID goes when the user logs out."
        yield "RuntimeDirectory", os.path.basename(pool.runtime_directory)
        yield "RuntimeDirectoryMode", "0700"
        yield "RuntimeDirectoryPreserve", "yes"


def stop_seconds(servers: Sequence[ServerConfig], more_seconds: float = 0.0) -> int:
    """The maximum seconds of a whole stop: servers in dependency order, `more_seconds` for features, and a margin."""
    return int(maximum_pool_stop_seconds(servers, more_seconds)) + _MARGIN_SECONDS


def _socket_units(pool: ServicePool, stem: str) -> dict[str, str]:
    inherited = [server for server in pool.servers if server.address.kind == "fd"]
    numbers = sorted(int(server.address.name) for server in inherited if server.address.name.isdecimal())
    if not inherited:
        return {}
    if numbers and (len(numbers) < len(inherited) or numbers != list(range(3, 3 + len(numbers)))):
        raise ValueError(
            "numbered sockets must be fd:3, fd:4 … without a gap, all of them; or name them, like fd:web"
        )
    if numbers:
        inherited.sort(key=lambda server: int(server.address.name))
        return {f"{stem}.socket": _socket(pool, stem, inherited, "")}
    return {
        f"{unit_name(f'{stem}-{server.address.name}')}.socket": _socket(
            pool, stem, [server], server.address.name
        )
        for server in inherited
    }


def _socket(pool: ServicePool, stem: str, servers: Sequence[ServerConfig], name: str) -> str:
    entries = [
        ("ListenStream", escape_unit_value(_systemd_listen_address(pool, server))) for server in servers
    ]
    entries += [
        (
            "#",
            "Without it an answer on a kept-alive connection may wait 40 ms for the client's acknowledgement.",
        ),
        ("NoDelay", "yes"),
        ("Backlog", str(BACKLOG)),
        ("Service", f"{stem}.service"),
    ]
    if name:
        entries.insert(1, ("FileDescriptorName", escape_unit_value(name)))
    description = f"Sockets of the pool {pool.name}: {', '.join(server.name for server in servers)}"
    sections = [("Unit", [("Description", escape_unit_value(description))]), ("Socket", entries)]
    return render([MADE_BY], [*sections, ("Install", [("WantedBy", "sockets.target")])])


def _systemd_listen_address(pool: ServicePool, server: ServerConfig) -> str:
    """The address for systemd to listen on: from --listen, or else from the server's configured `expose`.

    `expose` can be used if its host is an IP address or `localhost`, and it has a port. Otherwise raises ValueError.
    """
    name = server.address.name
    if configured := pool.listen.get(name) or pool.listen.get(server.name):
        return configured
    _, _, rest = server.expose.rpartition("://")
    host, _, port = rest.split("/")[0].rpartition(":")
    if (
        not server.derived_expose
        and port.isdecimal()
        and re.fullmatch(r"[\d.]+|\[[0-9a-fA-F:]+\]|localhost", host)
    ):
        return f"{'127.0.0.1' if host == 'localhost' else host}:{port}"
    raise ValueError(
        f"{server.name}: systemd needs an address to listen on for fd:{name}: --listen {name}=127.0.0.1:8080"
    )


_ESCAPES = {
    **{chr(code): f"\\x{code:02x}" for code in (*range(32), 127)},
    "\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r",
}  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")

Section = tuple[str, Sequence[tuple[str, str]]]


def render(comments: Iterable[str], sections: Iterable[Section]) -> str:
    """The text of a unit file, with `comments` at its top. The key "#" makes its value a comment."""
    lines = [f"# {comment}" for comment in comments]
    for name, entries in sections:
        lines += ["", f"[{name}]"]
        for key, value in entries:
            lines.append(f"# {value}" if key == "#" else f"{key}={value}")
    return "\n".join(lines) + "\n"


def escape_unit_value(value: str) -> str:
    """The value as the rest of a line in a systemd unit file, with `%` doubled.

    Raises ValueError for control characters, spaces at its ends, and a backslash at its end.
    """
    if re.search(r"[\x00-\x1f\x7f]", value) or value != value.strip() or value.endswith("\\"):
        raise ValueError(f"{value!r} cannot be written into a unit file")
    return value.replace("%", "%%")


def quote_unit_word(value: str) -> str:
    """The value as one word in a systemd unit file: `%` doubled, quoted if necessary. Raises ValueError for a NUL."""
    if "\0" in value:
        raise ValueError(f"{value!r} cannot be written into a unit file")
    value = value.replace("%", "%%")
    if _PLAIN.fullmatch(value):
        return value
    return '"' + "".join(_ESCAPES.get(character, character) for character in value) + '"'


def systemd_command_line(argv: Sequence[str]) -> str:
    """Return `argv` as a command line for systemd. `$` is doubled except in argv[0], which systemd does not expand."""
    return " ".join(
        [quote_unit_word(argv[0]), *(quote_unit_word(argument.replace("$", "$$")) for argument in argv[1:])]
    )


def unit_name(name: str) -> str:
    """The name as the first part of a unit name (systemd.unit(5)): invalid characters become hyphens."""
    return re.sub(r"[^A-Za-z0-9:_.-]", "-", name)
