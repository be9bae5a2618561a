"""The whole command line as a Typer application, made from what the commands declare.

It reads what the fast lane leaves to it, prints the help, and says what is wrong with a command line.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from poolctl import __version__
from poolctl.cli.command import (
    COMMON,
    FLAG,
    HELP_OPTION,
    LIST,
    SECTIONS,
    Command,
    Option,
    command_named,
    names,
)
from poolctl.cli.command_line import CommandRequest, as_help, perform, split, verb_of
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.exit_codes import USAGE
from poolctl.frozen_value import Table

HELP = {"help_option_names": ["-h", "--help"]}
FIRST_STEPS = (
    "poolctl init      write a starter pool.toml",
    "poolctl validate  check it: every problem with its fix",
    "poolctl start     in the background; or: poolctl run",
    "poolctl list      the servers; then: logs NAME, restart NAME, stop",
)
# Commands that a later version has.
_NOT_YET = ("import",)

Perform = Callable[[CommandRequest], Outcome]


def perform_args(args: Sequence[str], perform: Perform = perform) -> Outcome:
    """The outcome of a command line. Raises UsageError and what commands raise; prints nothing but help."""
    words, own_command = split(as_help(list(args)))
    application = build(perform)
    if not words:
        with contextlib.redirect_stdout(sys.stderr):
            application.main(["--help"], prog_name="poolctl", standalone_mode=False)
        return Outcome(exit_code=USAGE)
    try:
        result = application.main(words, prog_name="poolctl", standalone_mode=False, obj=own_command)
    except Exception as error:
        usage = _usage_error(error, words)
        if usage is None:
            raise
        raise usage from None
    return result if isinstance(result, Outcome) else Outcome()


@functools.cache
def build(perform: Perform = perform) -> typer.core.TyperGroup:
    """The application. Its commands are made when they are needed, and hand their requests to `perform`."""
    app = typer.Typer(
        name="poolctl",
        cls=_Group,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=HELP,
        help="A pool of HTTP servers: one file, one command, sockets that never close.",
        epilog="\b\nTo begin with:\n" + "\n".join(f"  {line}" for line in FIRST_STEPS),
    )

    def before(ctx: typer.Context, **values: object) -> None:
        del values["version"]
        ctx.obj = {**(ctx.obj or {}), **{key: value for key, value in values.items() if value is not None}}

    version = typer.Option(
        "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
    )
    _accept(before, {**_parameters(COMMON), "version": (Annotated[bool, version], False)})
    app.callback()(before)
    application = typer.main.get_group(app)
    application.commands = _Commands(perform)  # type: ignore[assignment]
    return application


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poolctl {__version__}")
        raise typer.Exit


class _Group(typer.core.TyperGroup):
    """Lists the commands by their sections."""

    def list_commands(self, ctx: object) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: object, formatter: Any) -> None:
        declared = {name: command_named(name) for name in self.commands}
        for section in SECTIONS:
            rows = [(name, each.help) for name, each in declared.items() if each and each.section == section]
            with formatter.section(f"Commands {section}"):
                formatter.write_dl(rows, col_spacing=12 - max(len(name) for name, _ in rows))


class _Command(typer.core.TyperCommand):
    """Shows arguments and options as they are declared, without the types that Typer names."""

    declared: Command

    def collect_usage_pieces(self, ctx: object) -> list[str]:
        pieces = ["[OPTIONS]"]
        for each in self.declared.arguments:
            word = each.metavar + ("…" if each.kind == LIST and "…" not in each.metavar else "")
            pieces.append(word if each.required else f"[{word}]")
        return pieces + ["[-- CMD…]"] * self.declared.takes_command

    def format_options(self, ctx: object, formatter: Any) -> None:
        arguments = [(each.metavar, each.help) for each in self.declared.arguments]
        options = [
            (" ".join(filter(None, [", ".join(each.spellings), each.metavar])), each.help)
            for each in (*self.declared.options, HELP_OPTION)
        ]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class _Commands(Mapping[str, object]):
    """The commands by name. Each is made when it is asked for: Typer takes 50 ms for all of them."""

    def __init__(self, perform: Perform) -> None:
        self._perform = perform
        self._made: dict[str, object] = {}

    def __getitem__(self, name: str) -> object:
        if name not in self._made:
            declared = command_named(name)
            if declared is None:
                raise KeyError(name)
            self._made[name] = _made(name, declared, self._perform)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())


def _made(verb: str, declared: Command, perform: Perform) -> object:
    """Typer's command, which hands a request with the values of its options to `perform`."""
    accepted = (*declared.arguments, *declared.options)
    lists = {option.key for option in accepted if option.kind == LIST}

    def run(ctx: typer.Context, **values: Any) -> Outcome:
        before: Table = ctx.obj or {}
        for key, value in values.items():
            if isinstance(before.get(key), list):
                values[key] = [*before[key], *(value or [])]
            elif before.get(key) and not value:
                values[key] = before[key]
        if "command" in before:
            values["command"] = before["command"]
        return perform(CommandRequest(verb, {k: (v or []) if k in lists else v for k, v in values.items()}))

    _accept(run, _parameters(accepted))
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(verb, cls=_Command, help=declared.help, epilog=_epilog(declared), context_settings=HELP)(run)
    made = typer.main.get_command(app)
    if isinstance(made, _Command):
        made.declared = declared
    return made


def _parameters(options: Sequence[Option]) -> dict[str, tuple[object, object]]:
    """Annotation and default of each option, by its key. Values stay text: requests judge them."""
    found: dict[str, tuple[object, object]] = {}
    for option in options:
        metavar = option.metavar or None
        about = (
            typer.Option(*option.spellings, metavar=metavar, help=option.help)
            if option.spellings
            else typer.Argument(metavar=metavar, help=option.help, show_default=False)
        )
        if option.kind == FLAG:
            found[option.key] = (Annotated[bool, about], False)
        elif option.kind == LIST:
            found[option.key] = (Annotated[list[str] | None, about], None)
        elif option.required:
            found[option.key] = (Annotated[str, about], ...)
        else:
            found[option.key] = (Annotated[str | None, about], None)
    return found


def _accept(function: Callable[..., object], accepted: Mapping[str, tuple[object, object]]) -> None:
    """Give the function the signature that Typer reads: the context, then these parameters."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    parameters += [
        inspect.Parameter(key, keyword, default=default, annotation=kind)
        for key, (kind, default) in accepted.items()
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _epilog(declared: Command) -> str | None:
    """The paragraphs below the options, their lines kept; None for a command that explains itself."""
    paragraphs = []
    if declared.notes:
        paragraphs.append("\b\n" + "\n".join(declared.notes))
    if declared.examples:
        paragraphs.append("\b\nExamples:\n" + "\n".join(f"  {line}" for line in declared.examples))
    return "\n\n".join(paragraphs) or None


def _usage_error(error: Exception, words: Sequence[str]) -> UsageError | None:
    """The option parser's complaint in our words; None for an error that is not the parser's.

    Recognised by its methods: releases of Typer differ in where the class comes from.
    """
    describe = getattr(error, "format_message", None)
    if describe is None or getattr(error, "exit_code", None) != USAGE:
        return None
    message = str(describe()).strip().rstrip(".")
    near = getattr(error, "possibilities", None)
    verb = verb_of(words)
    if verb in _NOT_YET:
        return UsageError(f"{verb} is not available in this version of poolctl", hint="poolctl -h")
    hint = f"poolctl {verb} -h" if verb and "command" not in message else "poolctl -h"
    message, _, guess = message.partition("Did you mean")
    if moved := _after_command(str(getattr(error, "option_name", "")), words):
        hint = f"options come after the command: {moved}"
    elif near and hasattr(error, "option_name"):
        hint = f"did you mean {_nearest(str(error.option_name), near)}?"
    elif guess:
        hint = f"did you mean{guess.rstrip(' ?)')}?"
    message = message.partition(" (Possible options")[0].rstrip(" (.")
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _after_command(option: str, words: Sequence[str]) -> str:
    """The command line with the option after the command that has it; "" for an option in its place."""
    at = next((at for at, word in enumerate(words) if command_named(word)), 0)
    command = command_named(words[at])
    if not at or command is None or not any(option in each.spellings for each in command.options):
        return ""
    return shlex.join(["poolctl", *words[at:], *words[:at]])


def _nearest(typed: str, near: Sequence[str]) -> str:
    """The option most likely meant: one that begins with what was typed, else the most similar one."""
    import difflib

    longer = [each for each in near if each.startswith(typed)]
    return (longer or difflib.get_close_matches(typed, near, n=1, cutoff=0.0))[0]
