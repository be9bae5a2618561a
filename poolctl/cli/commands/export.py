"""`poolctl export`: writes the pool as configuration for another system."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolctl.cli.command import DIRECTORIES, FILE_COMMANDS, LIST, Command, Option, flag, output
from poolctl.cli.command_line import CommandRequest, one_of
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.exit_codes import CONFLICT, FAILED
from poolctl.feature import features

if TYPE_CHECKING:
    from poolctl.cli.systemd_units import ServicePool


SYSTEMS = ("systemd", *(name for feature in features() for name in feature.exports))
COMMAND = Command(
    "Write the pool as files for another system.",
    Option("system", metavar="SYSTEM", words=SYSTEMS, required=True, help=f"{' or '.join(SYSTEMS)}."),
    Option(
        "into",
        "--directory",
        metavar="DIRECTORY",
        completes=DIRECTORIES,
        help="Write the files here instead of printing them.",
    ),
    output("json, jsonl, name, or FIELD,FIELD…; default: the files' texts", "json", "jsonl", "name"),
    flag("for_user", "--user", help="Write units for the user's own service manager."),
    Option(
        "listen",
        "--listen",
        metavar="NAME=ADDRESS",
        kind=LIST,
        help="Address that systemd opens for fd:NAME.",
    ),
    section=FILE_COMMANDS,
    fields=("name", "text"),
    examples=(
        "poolctl export systemd --directory /etc/systemd/system",
        *(f"poolctl export {name}" for name in SYSTEMS[1:]),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The texts of files by their names. Each begins with the words `made_by`."""

    texts: Mapping[str, str]
    made_by: str
    next_commands: str  # to be run once the files are written
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file for another system. `name` is its path if it has been written."""

    name: str
    text: str


def perform(request: CommandRequest) -> Outcome:
    """Print the files for the other system, or write them into a directory."""
    system = str(request.get("system"))
    one_of("export", system, SYSTEMS)
    made = next(
        (feature.load(feature.exports[system]) for feature in features() if system in feature.exports), _units
    )
    files: Files = made(request)
    directory = request.get("into")
    outcome = _written(str(directory), files) if directory else _printed(request, files.texts)
    outcome.warnings += files.warnings
    return outcome


def without_options_of_systemd(request: CommandRequest) -> None:
    """Raise UsageError for an option that is for systemd alone."""
    for key, option in (("for_user", "--user"), ("listen", "--listen")):
        if request.get(key):
            hint = f"poolctl export {request.get('system')}, without {option}"
            raise UsageError(f"{option} is for systemd", hint=hint)


def _units(request: CommandRequest) -> Files:
    from poolctl.cli import systemd_units as systemd

    pool = _pool(request, find_pool(request))
    of_user = bool(request.get("for_user"))
    try:
        texts = systemd.units(pool, of_user=of_user)
    except ValueError as wrong:
        raise Failure(Outcome.failed(FAILED, str(wrong))) from None
    systemctl = "systemctl --user" if of_user else "systemctl"
    to_enable = " ".join(texts)
    commands = f"{systemctl} daemon-reload && {systemctl} enable --now {to_enable}"
    warnings = []
    if missing := systemd.missing_variables(pool):
        file = texts[next(iter(texts))].partition("EnvironmentFile=-")[2].partition("\n")[0]
        warnings = [f"the service lacks these variables: {', '.join(missing)}; put them into {file}"]
    return Files(texts=texts, made_by=systemd.MADE_BY, next_commands=commands, warnings=warnings)


def _pool(request: CommandRequest, ref: PoolRef) -> ServicePool:
    from poolctl.cli.systemd_units import ServicePool
    from poolctl.supervisor.active_configuration import default_name

    config = load(ref)
    name = config.settings.name or default_name(ref.files[0])
    listen = {}
    for given in request.get("listen") or []:
        key, equals, address = given.partition("=")
        if not (equals and key and address):
            raise UsageError(f"--listen: {given!r} is not NAME=ADDRESS", hint="--listen web=127.0.0.1:8080")
        listen[key.removeprefix("fd:")] = address
    return ServicePool(
        name, ref.files, list(config), _command(), os.environ, listen, _user(), config.tables.gateway
    )


def _command() -> list[str]:
    script = os.path.join(os.path.dirname(sys.executable), "poolctl")
    return [script] if os.path.exists(script) else [sys.executable, "-m", "poolctl"]


def _user() -> str:
    """The user that runs the pool here, "" for root; a system service runs as the same user."""
    if not os.geteuid():
        return ""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _printed(request: CommandRequest, texts: Mapping[str, str]) -> Outcome:
    outcome = Outcome([ExportedFile(name=name, text=text) for name, text in texts.items()])
    if request.output in ("", "table", "wide"):
        outcome.text = "\n".join(f"# {name}\n{text}" for name, text in texts.items())
    return outcome


def _written(directory: str, files: Files) -> Outcome:
    paths = {os.path.normpath(os.path.join(directory, name)): text for name, text in files.texts.items()}
    try:
        foreign = [path for path in paths if os.path.lexists(path) and not _holds(path, files.made_by)]
        if foreign:
            hint = "remove it, or write into another directory"
            raise Failure(Outcome.failed(CONFLICT, f"{foreign[0]} was not made by poolctl export", hint))
        os.makedirs(directory, exist_ok=True)
        for path, text in paths.items():
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
    except OSError as error:
        raise Failure(Outcome.failed(FAILED, f"cannot write {error.filename}: {error.strerror}")) from None
    exported = [ExportedFile(name=path, text=text) for path, text in paths.items()]
    return Outcome(exported, message=f"wrote {', '.join(paths)}; next: {files.next_commands}")


def _holds(path: str, words: str) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return words in file.readline()
