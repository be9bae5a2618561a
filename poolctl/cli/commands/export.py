"""`poolctl export`: writes the pool as configuration for another system."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolctl.cli.command import DIRECTORIES, FILE_COMMANDS, LIST, Command, Option, flag, output
from poolctl.cli.command_line import CommandRequest, one_of
from poolctl.cli.offline import load
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.exit_codes import CONFLICT, FAILED

if TYPE_CHECKING:
    from poolctl.cli.systemd_units import ServicePool


SYSTEMS = ("systemd", "haproxy")
COMMAND = Command(
    "Write the pool's files for systemd, or those of its routes for HAProxy.",
    Option("system", metavar="SYSTEM", words=SYSTEMS, required=True, help="systemd or haproxy."),
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
    examples=("poolctl export systemd --directory /etc/systemd/system", "poolctl export haproxy"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file for another system. `name` is its path if it has been written."""

    name: str
    text: str


def perform(request: CommandRequest) -> Outcome:
    """Print the files for the other system, or write them into a directory."""
    one_of("export", str(request.get("system")), SYSTEMS)
    return _for_haproxy(request) if request.get("system") == "haproxy" else _for_systemd(request)


def _for_systemd(request: CommandRequest) -> Outcome:
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
    outcome = _outcome(request, texts, systemd.MADE_BY, commands)
    if missing := systemd.missing_variables(pool):
        file = texts[next(iter(texts))].partition("EnvironmentFile=-")[2].partition("\n")[0]
        outcome.warnings.append(
            f"the service lacks these variables: {', '.join(missing)}; put them into {file}"
        )
    return outcome


def _for_haproxy(request: CommandRequest) -> Outcome:
    from poolctl.cli import haproxy_files as haproxy
    from poolctl.config import haproxy_problems

    for key, option in (("for_user", "--user"), ("listen", "--listen")):
        if request.get(key):
            raise UsageError(f"{option} is for systemd", hint=f"poolctl export haproxy, without {option}")
    config = load(find_pool(request), allow_empty=True)
    try:
        found = haproxy.haproxy_files(list(config), config.tables)
    except ValueError as wrong:
        raise Failure(Outcome.failed(FAILED, str(wrong))) from None
    check = f"haproxy -c -f {os.path.join(request.get('into') or '', haproxy.FILE_NAME)}"
    outcome = _outcome(request, found.texts, haproxy.MADE_BY, " && ".join([*found.bundles, check]))
    outcome.warnings += [str(each) for each in config.located(haproxy_problems(config, config.tables))]
    if found.bundles and not request.get("into"):
        outcome.warnings.append(f"the certificates need files of their own: {'; '.join(found.bundles)}")
    for name in found.unaddressed:
        message = f"{name} has no address that HAProxy can know: its port is chosen when it starts"
        outcome.warnings.append(f"{message}; give it a port")
    return outcome


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


def _outcome(request: CommandRequest, texts: Mapping[str, str], made_by: str, commands: str) -> Outcome:
    """Print or write the files, followed by the commands to run next."""
    directory = request.get("into")
    if directory:
        return _written(str(directory), texts, made_by, commands)
    outcome = Outcome([ExportedFile(name=name, text=text) for name, text in texts.items()])
    if request.output in ("", "table", "wide"):
        outcome.text = "\n".join(f"# {name}\n{text}" for name, text in texts.items())
    return outcome


def _written(directory: str, texts: Mapping[str, str], made_by: str, commands: str) -> Outcome:
    paths = {os.path.normpath(os.path.join(directory, name)): text for name, text in texts.items()}
    try:
        foreign = [path for path in paths if os.path.lexists(path) and not _holds(path, made_by)]
        if foreign:
            hint = "remove it, or write into another directory"
            raise Failure(Outcome.failed(CONFLICT, f"{foreign[0]} was not made by poolctl export", hint))
        os.makedirs(directory, exist_ok=True)
        for path, text in paths.items():
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
    except OSError as error:
        raise Failure(Outcome.failed(FAILED, f"cannot write {error.filename}: {error.strerror}")) from None
    files = [ExportedFile(name=path, text=text) for path, text in paths.items()]
    return Outcome(files, message=f"wrote {', '.join(paths)}; next: {commands}")


def _holds(path: str, words: str) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return words in file.readline()
