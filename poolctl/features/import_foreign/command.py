"""`poolctl import`: converts another tool's file or command line to a pool.toml."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolctl.cli.group import TakesProgram
from poolctl.cli.options import examples, with_options
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.place import Place
from poolctl.cli.render import server_count_text
from poolctl.exit_codes import CONFLICT, FAILED, INVALID_CONFIGURATION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._foreign_pool import ForeignPool, RenderedPoolFile

app = typer.Typer(add_completion=False)
DEFAULT_TARGET = "pool.toml"


@app.command(
    cls=TakesProgram,
    epilog=examples(
        "poolctl import Procfile -o pool.toml",
        "poolctl import docker-compose.yml > pool.toml",
        "poolctl import web.service worker.service -o pool.toml",
        "poolctl import -- gunicorn -w 4 -b :8000 shop.wsgi",
    ),
)
@with_options
def import_foreign(
    ctx: typer.Context,
    place: Place,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            readable=False,
            help="A Procfile, supervisord.conf, compose.yml, ecosystem.json or unit.service; several units, or a "
            "compose file and others that override it.",
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write this file instead of printing it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> Outcome:
    """Make a pool.toml of another tool's file or command line.

    Settings without an equivalent become comments that name the file's line.
    """
    files, words = [*map(str, sources or ())], ctx.args
    if bool(files) == bool(words):
        raise UsageError("import takes a file, or a command after --", hint="poolctl import Procfile")
    target = os.path.abspath(into or DEFAULT_TARGET)
    if into and not target.endswith(".toml"):
        raise UsageError(f"import writes a new TOML file, not {into.name!r}", hint="-o pool.toml")
    if into and os.path.lexists(target) and not force:
        message = f"{os.path.relpath(target)} already exists"
        raise Failure(Outcome.failed(CONFLICT, message, "use --force to overwrite"))
    from poolctl.config.values.problems import Problem

    from ._command_lines import pool_of_command
    from ._foreign_pool import Unreadable, place_prefix, pool_text

    try:
        pool = pool_of_command(words) if words else _pool_of_files(files)
    except Problem as problem:
        from poolctl.control.answers import ErrorEntry

        raise Failure(Outcome(errors=[ErrorEntry.of(problem)], exit_code=INVALID_CONFIGURATION)) from None
    except Unreadable as unreadable:
        where = place_prefix(files[0], unreadable.line) or f"{files[0]}: " if files else ""
        failed = Outcome.failed(INVALID_CONFIGURATION, where + unreadable.message, unreadable.hint)
        raise Failure(failed) from None
    base_dir = os.path.dirname(os.path.abspath(files[0])) if files else os.getcwd()
    name = os.path.basename(files[0]) if files else shlex.join(words)
    mode = 0o666  # less the umask
    for file in (*files, *pool.files):
        mode &= os.stat(file).st_mode
    return _write_or_print(pool_text(pool, name, base_dir, target), str(into) if into else None, mode)


def _pool_of_files(paths: Sequence[str]) -> ForeignPool:
    """The pool of a file and others of its kind. The name or the content tells the kind.

    Raises Problem and Unreadable.
    """
    from poolctl import config

    from ._command_lines import pool_of_procfile
    from ._compose import pool_of_compose
    from ._compose_files import document_of_compose
    from ._foreign_pool import Unreadable
    from ._pm2 import document_of_pm2, pool_of_pm2
    from ._supervisord import pool_of_supervisord
    from ._systemd import pool_of_units

    path, *others = map(os.path.abspath, paths)
    kind = config.foreign_format(path)
    if kind == config.JAVASCRIPT:
        hint = config.foreign_file_hint(path, kind)
        raise Unreadable("this is JavaScript, which poolctl does not run", hint)
    is_document = os.path.splitext(path)[1].lower() in (".yaml", ".yml", ".json")
    if is_document:
        document = document_of_pm2(path) if path.endswith(".json") else document_of_compose(path)
        kind = config.foreign_format(path, document.data)
        known = {config.COMPOSE, config.ECOSYSTEM}
        message = "it has neither services (docker compose) nor apps (pm2)"
    else:
        text = config.read_text(path)
        known = {config.UNIT, config.PROCFILE, config.SUPERVISORD}
        message = "neither its name nor its sections are those of another tool's file"
    if kind in config.NOT_IMPORTED:
        hint = config.foreign_file_hint(path, kind)
        raise Unreadable(f"this is {kind}, which import does not read", hint)
    if kind not in known:
        raise Unreadable(message, "poolctl import --help names the files")
    kinds = {kind, *map(config.foreign_format, others)}
    if others and kind != config.COMPOSE and kinds != {config.UNIT}:
        raise Unreadable(
            "only units of systemd, or compose files, are imported together",
            "import each with -o, and name all with -c: poolctl -c one.toml -c two.toml start",
        )
    if kind == config.COMPOSE:
        return pool_of_compose(document, others or None)
    if kind == config.ECOSYSTEM:
        return pool_of_pm2(document)
    if kind == config.UNIT:
        return pool_of_units([path, *others])
    if kind == config.PROCFILE:
        return pool_of_procfile(text)
    return pool_of_supervisord(text, os.path.dirname(path))


def _write_or_print(rendered: RenderedPoolFile, into: str | None, mode: int) -> Outcome:
    """Write the new pool.toml to the file `into`; if `into` is None, return an outcome that prints it.

    The file gets only permissions in `mode`, as its sources can contain secrets. Raises Failure if the new pool.toml
    would have no servers.
    """
    if not rendered.servers:
        raise Failure(Outcome.failed(FAILED, "no server could be taken over", "; ".join(rendered.left_out)))
    if into is None:
        return Outcome(text=rendered.text, is_file=True, warnings=rendered.warnings)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(into)), exist_ok=True)
        with open(into, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            had = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if had & ~mode:
                os.fchmod(file.fileno(), had & mode)
            file.write(rendered.text)
    except OSError as error:
        raise Failure(Outcome.failed(FAILED, f"cannot write {error.filename}: {error.strerror}")) from None
    remarks = f", {rendered.remarks} remark{'s' * (rendered.remarks > 1)}" if rendered.remarks else ""
    is_default = os.path.abspath(into) == os.path.abspath(DEFAULT_TARGET)
    command = "poolctl start" if is_default else f"poolctl -c {shlex.quote(into)} start"
    message = f"wrote {into}: {server_count_text(rendered.servers)}{remarks}; next: read it, then {command}"
    return Outcome(message=message, warnings=rendered.warnings)
