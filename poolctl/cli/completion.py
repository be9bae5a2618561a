"""Shell completion. Completers ask the pool on Tab, and never fail or print."""

import contextlib
import io
import os
from collections.abc import Callable, Generator, Iterable
from typing import Any

import typer

ANSWER_SECONDS = 1.0
VARIABLE = "_POOLCTL_COMPLETE"  # set by Typer's scripts


def _quietly(
    find: Callable[[typer.Context, str], Iterable[str]],
) -> Callable[[typer.Context, str], list[str]]:
    def offers(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return [word for word in find(ctx, incomplete) if word.startswith(incomplete)]
        except (Exception, SystemExit):
            return []

    return offers


@_quietly
def targets(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Names of servers and, once one is begun, addresses; nothing behind `--`, where the shell completes files."""
    if ctx.meta.get("program"):
        return
    for server in _servers(ctx):
        yield server["name"]
        if incomplete:
            yield server["bind"]


@_quietly
def tags(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The servers' tags."""
    return sorted({tag for server in _servers(ctx) for tag in server["tags"]})


@_quietly
def backends(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The gateway's backends."""
    return [backend["host"] for backend in _ask_pool(ctx, "hosts") or ()]


@_quietly
def routes(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The aliases of the gateway's routes."""
    return [route["alias"] for route in _ask_pool(ctx, "routes") or ()]


def _pool(ctx: typer.Context) -> Any:
    """The pool that -c or --pool names before or after the command; `~` in the path of -c is expanded."""
    from pathlib import Path

    from poolctl.cli.place import Place
    from poolctl.cli.pool_ref import find_pool

    params = {**ctx.find_root().params, **{key: value for key, value in ctx.params.items() if value}}
    files = [Path(file).expanduser() for file in params.get("config") or ()]
    return find_pool(Place(config=files, pool=params.get("pool"), quiet=True), missing_ok=True)


def _servers(ctx: typer.Context) -> list[dict[str, Any]]:
    servers = _ask_pool(ctx, "list")
    return [*_servers_in_files(_pool(ctx).files)] if servers is None else servers


def _ask_pool(ctx: typer.Context, verb: str) -> list[dict[str, Any]] | None:
    """The items in a running pool's answer to this verb; None if it does not answer within ANSWER_SECONDS."""
    from poolctl.control.client import Client
    from poolctl.errors import ControlError

    try:
        document = Client(_pool(ctx).socket, silence_seconds=ANSWER_SECONDS).call(verb, timeout=0.0)
    except ControlError:
        return None
    return list(document["items"])


def _servers_in_files(paths: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Yield each server in the files as a table of name, bind and tags. Nothing is validated."""
    from poolctl.config import read_documents

    for document in read_documents([*paths])[0]:
        tables = document.data if isinstance(document.data, list) else document.data.get("server", [])
        for server in [table for table in tables if isinstance(table, dict)]:
            texts = {key: str(server.get(key) or "") for key in ("name", "bind")}
            yield {**texts, "tags": [*map(str, server.get("tags") or ())]}


@contextlib.contextmanager
def whole_words() -> Generator[None, None, None]:
    """While bash completes: join the words that bash split at `:` and `=`, and print the part after the last colon.

    Typer's script passes COMP_WORDS unchanged: `127.0.0.1:80` is three words, and bash replaces only the last.
    """
    if os.environ.get(VARIABLE) != "complete_bash":
        yield
        return
    joined = list[str]()
    for word in os.environ["COMP_WORDS"].split("\n")[: int(os.environ["COMP_CWORD"]) + 1]:
        if joined and (word in (":", "=") or joined[-1][-1:] in (":", "=")):
            joined[-1] += word
        else:
            joined.append(word)
    os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    prefix = "".join(joined[-1].rpartition("=")[2].rpartition(":")[:2])
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        print(*(line.removeprefix(prefix) for line in printed.getvalue().splitlines()), sep="\n")
