"""`poolctl add`: adds servers, from options or from a file."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolctl.address import Address, AddressError, parse
from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Form, Save, Wait, examples, flags, with_options
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.cli.supervisor_requests import Request, ask
from poolctl.config import directory_of
from poolctl.exit_codes import CONFLICT, FAILED
from poolctl.json_form import Table

if TYPE_CHECKING:
    from poolctl.cli.live_change import WriteBack

# Keys with lists, and how to parse them from one word.
LISTS: dict[str, Callable[[str], list[str]]] = {
    "command": shlex.split,
    "depends_on": lambda text: [word.strip() for word in text.split(",")],
    "tags": lambda text: [word.strip() for word in text.split(",")],
}

# Options that set keys of the server, by name.
KEYS = {"bind": "bind", "app": "app", "program": "command"}

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class NewServer:
    """The server to add, from options instead of a file."""

    server: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The new server's name.")] = None
    bind: Annotated[
        str | None, typer.Option("--bind", metavar="ADDRESS", help="The address it listens on.")
    ] = None
    app: Annotated[
        str | None, typer.Option("--app", metavar="MODULE:ATTRIBUTE", help="The application it serves.")
    ] = None
    program: Annotated[
        str | None,
        typer.Option(
            "--command", metavar="WORDS", help="The program that it runs, instead of an application."
        ),
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another key: workers=2, env.LEVEL=debug."),
    ] = None


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl add docs --bind 127.0.0.1:8083 --app docs.main:app --set workers=2",
        "poolctl add files --bind :8084 --command 'caddy run' --save",
        "poolctl add queue --command 'celery --app shop worker'      without a port",
        "poolctl add -f more.toml      every server of that file",
    ),
)
@with_options
def add(
    place: Place,
    new: NewServer,
    wait: Wait,
    save: Save,
    file: Annotated[
        Path | None,
        typer.Option(
            "-f", "--file", metavar="FILE", readable=False, help="Add the servers of this file instead."
        ),
    ] = None,
    output: Form = None,
) -> Outcome:
    """Add a server to the running pool."""
    pool = find_pool(place)
    tables, base_dir = server_tables_with_base_dir(new, file, pool)

    def add_each(base_dir: str) -> Outcome:
        outcomes = []
        for table in tables:
            options = {
                "wait": not wait.no_wait,
                "server": table,
                "base_dir": base_dir,
                **flags(saves=save.save),
            }
            result = ask(Request("add", place, options=options, timeout=wait.timeout), pool)
            added = [f"added {item.name}, {'ready' if item.ready else item.state}" for item in result.items]
            outcomes.append(Outcome.of(result, "".join(added[:1])))
        return _combined(outcomes)

    if not save.save:
        return add_each(base_dir)
    from poolctl.cli.live_change import WriteBack
    from poolctl.config import Surroundings, added_server, relocated

    files = WriteBack(pool, dry_run=save.dry_run)
    home = files.draft.file_for_new_server().base_dir
    tables = [relocated(table, base_dir if file else home, home) for table in tables]
    _refuse_taken(files, tables, home)
    first = files.draft.documents[0].base_dir if files.draft.documents else home
    surroundings = Surroundings(files.now.defaults, first, files.now.settings.handlers)
    for table in tables:
        added_server(surroundings, table, home, os.environ)  # raises problems without a place in a file
        files.draft.add(table)
    if files.supervised:
        return files.apply_and_write(lambda: add_each(home))
    return files.apply_and_write(lambda: _offline_add_outcome(files, tables))


def _refuse_taken(files: WriteBack, tables: list[Table], base_dir: str) -> None:
    """Raise Failure (exit 8) if the name or address of a new server is taken."""
    from poolctl.config import conflicts

    servers = [(server.name, server.address) for server in files.now]
    new: list[tuple[str, Address | None]] = []
    for table in tables:
        address = None
        with suppress(AddressError):
            address = parse(str(table.get("bind", table.get("listen", ""))), base_dir=base_dir)
        new.append((str(table.get("name", "")), address))
    taken = [finding for index, _, finding in conflicts([*servers, *new]) if index >= len(servers)]
    if taken:
        raise Failure(Outcome.failed(CONFLICT, taken[0].message, taken[0].hint))


def _offline_add_outcome(files: WriteBack, tables: list[Table]) -> Outcome:
    from poolctl.control.answers import item_from_config

    names = [table.get("name") for table in tables]
    items = [item_from_config(server) for server in files.draft.load_validated() if server.name in names]
    return Outcome(items, message="\n".join(f"added {name}, not started" for name in names))


def server_tables_with_base_dir(new: NewServer, file: Path | None, pool: PoolRef) -> tuple[list[Table], str]:
    """The server tables to add, as they would be in a file, and the directory to which their relative paths refer."""
    if file is None:
        first = pool.files[0] if pool.files else "."
        return [_from_options(new)], os.path.abspath(directory_of(first))
    if options := [name for name, value in vars(new).items() if value]:
        named = "NAME" if options[0] == "server" else f"--{KEYS.get(options[0], options[0])}"
        raise UsageError(f"{named} and -f cannot be combined", hint="put it into the file")
    path = os.path.abspath(file)
    return _from_file(path), os.path.dirname(path)


def _from_options(new: NewServer) -> Table:
    from poolctl.config import merged

    if not new.server:
        raise UsageError(
            "add: the new server's name is missing",
            hint="poolctl add NAME --bind ADDRESS --app MODULE:ATTRIBUTE, or NAME --command WORDS",
        )
    table: Table = {"name": new.server}
    for option, key in KEYS.items():
        if (value := getattr(new, option)) is not None:
            table[key] = value
    keys = set(table)
    if "command" in table:
        table["command"] = _split_command("--command", "command", str(table["command"]))
    for word in new.set or []:
        setting = _parsed_setting(word)
        if taken := sorted(setting.keys() & keys):
            raise UsageError(f"--set {word}: {taken[0]!r} is given twice", hint="give it once")
        table = merged(table, setting)
    return table


def _parsed_setting(word: str) -> Table:
    """`env.LEVEL=debug` as a table. A value that is not TOML, or is a date, is text."""
    key, equals, text = word.partition("=")
    try:
        if not equals:
            raise ValueError
        setting = tomllib.loads(f"{key} = 0")
        text.encode()
    except ValueError:
        raise UsageError(
            f"--set: {word!r} is not KEY=VALUE", hint="--set workers=2, --set env.LEVEL=debug"
        ) from None
    value: object = text
    try:
        read = tomllib.loads(f"value = {text}")
        if read.keys() == {"value"} and not isinstance(read["value"], (date, datetime, time)):
            value = read["value"]
    except ValueError:
        pass
    table = setting
    while isinstance(inner := next(iter(table.values())), dict):
        table = inner
    table[next(iter(table))] = value
    for key in LISTS:
        if isinstance(setting.get(key), str):
            setting[key] = _split_command(f"--set {key}", key, setting[key])
    return setting


def _split_command(option: str, key: str, text: str) -> list[str]:
    try:
        return LISTS[key](text)
    except ValueError as error:
        hint = 'words as in a shell, or a list: --set \'KEY=["a", "b"]\''.replace("KEY", key)
        raise UsageError(f"{option}: {error}", hint=hint) from None


def _from_file(path: str) -> list[Table]:
    from poolctl.config import Document, Problem
    from poolctl.config import Place as Where
    from poolctl.errors import PoolValidateError

    try:
        document = Document(path)
        data = document.data
        if isinstance(data, dict) and "name" in data:
            data = [data]
        elif isinstance(data, dict) and data.keys() <= {"server"}:
            data = data.get("server")
        if not isinstance(data, list) or not data or not all(isinstance(table, dict) for table in data):
            hint = "write [[server]] tables and nothing else, or one server's keys"
            raise Problem("this file holds no list of servers", place=Where(path), hint=hint)
    except Problem as problem:
        raise PoolValidateError("the file cannot be used", [problem]) from None
    return data


def _combined(outcomes: list[Outcome]) -> Outcome:
    """One outcome for several, with all their servers, errors and warnings.

    Its exit code is FAILED if one of them has that code, else the first code that is not 0.
    """
    whole = Outcome()
    for outcome in outcomes:
        whole.items += outcome.items
        whole.errors += outcome.errors
        whole.warnings += outcome.warnings
        whole.exit_code = (
            FAILED if FAILED in (whole.exit_code, outcome.exit_code) else whole.exit_code or outcome.exit_code
        )
    whole.message = "\n".join(outcome.message for outcome in outcomes if outcome.message)
    return whole
