"""The whole command line as a Typer application, generated from the commands' declarations.

The application prints the help, and parses command lines that are too complex for `command_line.parse`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from poolctl import __version__
from poolctl.cli.command_line import (
    COMMON,
    HELP_OPTION,
    SECTIONS,
    VERSION_OPTION,
    Command,
    CommandRequest,
    Option,
    command_named,
    help_as_option,
    names,
    nearest_word,
    perform,
    split_off_user_command,
    verb_of,
)
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.exit_codes import USAGE
from poolctl.json_form import Table

HELP = {"help_option_names": ["-h", "--help"]}
FIRST_STEPS = (
    "poolctl init      write a starter pool.toml",
    "poolctl validate  check it: every problem with its fix",
    "poolctl start     in the background; or: poolctl run",
    "poolctl list      the servers; then: logs NAME, restart NAME, stop",
)
# The commands in `poolctl --help`; `poolctl help --all` lists every command.
FIRST_COMMANDS = {
    "init", "run", "validate", "restart", "start", "stop", "filter", "list", "logs", "show", "status", "top", "walk",
    "reload", "scale",
}  # fmt: skip
MORE_HELP = "poolctl help COMMAND shows a command's options and examples; help --all lists every command."
Perform = Callable[[CommandRequest], Outcome]


def perform_args(args: Sequence[str], perform: Perform = perform) -> Outcome:
    """Run a command line, and return its outcome without printing it. Options such as --help print their text.

    Raises UsageError for an invalid command line, and every exception that the command raises.
    """
    words, own_command = split_off_user_command(help_as_option(list(args)))
    application = build(perform)
    if not words:
        with contextlib.redirect_stdout(sys.stderr):
            application.main(["--help"], prog_name="poolctl", standalone_mode=False)
        return Outcome(exit_code=USAGE)
    try:
        result = application.main(words, prog_name="poolctl", standalone_mode=False, obj=own_command)
    except SystemExit:  # Typer's own, where the reader of its help is gone
        raise BrokenPipeError from None
    except Exception as error:
        usage = usage_error(error, words)
        if usage is None:
            raise
        raise usage from None
    return result if isinstance(result, Outcome) else Outcome()


@functools.cache
def build(perform: Perform = perform) -> typer.core.TyperGroup:
    """The application. Its commands are created on demand, and pass their requests to `perform`."""
    app = typer.Typer(
        name="poolctl",
        cls=_LazyGroup,
        add_completion=False,
        rich_markup_mode=None,
        context_settings=HELP,
        help="A pool of HTTP servers: one file, one command, sockets that never close.",
        epilog="\b\nTo begin with:\n" + "\n".join(f"  {line}" for line in FIRST_STEPS) + f"\n\n{MORE_HELP}",
    )

    def before(ctx: typer.Context, **values: object) -> None:
        del values["version"], values["help_all"]
        ctx.obj = {**(ctx.obj or {}), **{key: value for key, value in values.items() if value is not None}}

    version = typer.Option(
        *VERSION_OPTION.spellings, is_eager=True, callback=_print_version, help=VERSION_OPTION.help
    )
    everything = typer.Option("--help-all", is_eager=True, callback=_print_all_help, hidden=True)
    flags = {"version": (Annotated[bool, version], False), "help_all": (Annotated[bool, everything], False)}
    _set_signature(before, {**_parameters(COMMON), **flags})
    app.callback()(before)
    application = typer.main.get_group(app)
    assert isinstance(application, _LazyGroup)
    application.perform = perform
    return application


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poolctl {__version__}")
        raise typer.Exit


def _print_all_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL_COMMANDS] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


_ALL_COMMANDS = "poolctl.all_commands"


class _LazyGroup(typer.core.TyperGroup):
    """Creates a command when it is named, because Typer is slow to create all of them.

    The help lists commands by section: the most important ones, or with `help --all` all of them.
    """

    perform: Perform

    def get_command(self, ctx: object, name: str) -> Any:
        declared = command_named(name)
        return declared and _create_command(name, declared, self.perform)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        every = ctx.meta.get(_ALL_COMMANDS, False)
        declared = {name: command_named(name) for name in names() if every or name in FIRST_COMMANDS}
        for section in SECTIONS:
            rows = [(name, each.help) for name, each in declared.items() if each and each.section == section]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows, col_spacing=12 - max(len(name) for name, _ in rows))
        _write_options(formatter, "Global options", (*COMMON, VERSION_OPTION, HELP_OPTION))


class _Command(typer.core.TyperCommand):
    """Shows arguments and options as declared, without Typer's type names."""

    declared: Command

    def collect_usage_pieces(self, ctx: object) -> list[str]:
        pieces = ["[OPTIONS]"]
        for each in self.declared.arguments:
            word = each.metavar + ("..." if each.kind == "list" and "..." not in each.metavar else "")
            pieces.append(word if each.required else f"[{word}]")
        return pieces + ["[-- CMD...]"] * self.declared.takes_command

    def format_options(self, ctx: object, formatter: Any) -> None:
        if self.declared.arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(each.metavar, each.help) for each in self.declared.arguments])
        _write_options(formatter, "Options", self.declared.own)
        _write_options(formatter, "Selection", self.declared.selection)
        _write_options(formatter, "Global options", (*COMMON, HELP_OPTION))


def _write_options(formatter: Any, title: str, options: Sequence[Option]) -> None:
    if options:
        rows = [
            (" ".join(filter(None, [", ".join(each.spellings), each.metavar])), each.help) for each in options
        ]
        with formatter.section(title):
            formatter.write_dl(rows)


@functools.cache
def _create_command(verb: str, declared: Command, perform: Perform) -> object:
    accepted = (*declared.arguments, *declared.options)
    lists = {option.key for option in accepted if option.kind == "list"}

    def run(ctx: typer.Context, **values: Any) -> Outcome:
        before: Table = ctx.obj or {}
        for key, value in values.items():
            if isinstance(before.get(key), list):
                values[key] = [*before[key], *(value or [])]
            elif key in before and value in (None, False):
                values[key] = before[key]
        if "command" in before:
            values["command"] = before["command"]
        return perform(CommandRequest(verb, {k: (v or []) if k in lists else v for k, v in values.items()}))

    _set_signature(run, _parameters(accepted))
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(verb, cls=_Command, help=declared.help, epilog=_epilog(declared), context_settings=HELP)(run)
    made = typer.main.get_command(app)
    if isinstance(made, _Command):
        made.declared = declared
    return made


def _parameters(options: Sequence[Option]) -> dict[str, tuple[object, object]]:
    """The Typer annotation and default of each option, by key. Values stay text, which CommandRequest validates."""
    found: dict[str, tuple[object, object]] = {}
    for option in options:
        metavar = option.metavar or None
        about = (
            typer.Option(*option.spellings, metavar=metavar, help=option.help)
            if option.spellings
            else typer.Argument(metavar=metavar, help=option.help, show_default=False)
        )
        if option.kind == "flag":
            found[option.key] = (Annotated[bool, about], False)
        elif option.kind == "list":
            found[option.key] = (Annotated[list[str] | None, about], None)
        elif option.required:
            found[option.key] = (Annotated[str, about], ...)
        else:
            found[option.key] = (Annotated[str | None, about], None)
    return found


def _set_signature(function: Callable[..., object], accepted: Mapping[str, tuple[object, object]]) -> None:
    """Set the function's signature for Typer: the context, then these parameters."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    parameters += [
        inspect.Parameter(key, keyword, default=default, annotation=kind)
        for key, (kind, default) in accepted.items()
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _epilog(declared: Command) -> str | None:
    paragraphs = []
    if declared.notes:
        paragraphs.append("\b\n" + "\n".join(declared.notes))
    if declared.examples:
        paragraphs.append("\b\nExamples:\n" + "\n".join(f"  {line}" for line in declared.examples))
    return "\n\n".join(paragraphs) or None


# Commands of docker, kubectl, pm2, supervisorctl and systemctl, and poolctl's equivalents.
OTHER_COMMANDS = {
    "ps": "list",
    "ls": "list",
    "get": "list",
    "up": "start",
    "down": "stop",
    "kill": "stop",
    "describe": "show",
    "inspect": "show",
    "delete": "remove",
    "rm": "remove",
    "tail": "logs -f",
    "log": "logs",
    "monit": "top",
    "apply": "reload",
    "reread": "reload",
    "update": "reload",
    "rollout": "restart",
    "check": "validate",
    "version": "--version",
}
# Options of those tools: the option of poolctl that the command must have, and how to write it.
OTHER_OPTIONS = {
    "--format": ("-o", "-o FORM"),
    "--json": ("-o", "-o json"),
    "--wide": ("-o", "-o wide"),
    "--file": ("-c", "-c FILE"),
    "-f": ("-c", "-c FILE"),
    "--reload": ("--watch", "--watch"),
}
_IN_BACKGROUND = ("-d", "--detach", "--background", "--daemon")


def usage_error(error: Exception, words: Sequence[str]) -> UsageError | None:
    """The UsageError for an error of the option parser; None for any other error."""
    describe = getattr(error, "format_message", None)  # releases of Typer differ in the class's module
    if describe is None or getattr(error, "exit_code", None) != USAGE:
        return None
    message = str(describe()).partition("Did you mean")[0].partition(" (Possible options")[0].strip(" (.")
    message = message[:1].lower() + message[1:]
    verb = verb_of(words)
    if option := str(getattr(error, "option_name", "")):
        hint = _option_hint(option, verb, words)
    elif verb and command_named(verb) is None:
        hint = _command_hint(verb)
    else:
        hint = ""
    return UsageError(message, hint=hint or (f"poolctl {verb} -h" if command_named(verb) else "poolctl -h"))


def _command_hint(verb: str) -> str:
    meant = OTHER_COMMANDS.get(verb, "")
    if meant in VERSION_OPTION.spellings or command_named(meant.partition(" ")[0]) is not None:
        return f"here it is called: poolctl {meant}"
    near = nearest_word(verb, names())
    return f"did you mean {near!r}?" if near else ""


def _option_hint(option: str, verb: str, words: Sequence[str]) -> str:
    """A hint for an option that `verb` rejects: its correct position, another name, or a similar option; or ""."""
    if moved := _corrected_command_line(option, words):
        return f"options come after the command: {moved}"
    command = command_named(verb)
    accepted = [*(command.options if command else COMMON), HELP_OPTION]
    spellings = [spelling for each in accepted for spelling in each.spellings]
    if option in spellings:  # the option is known, so the mistake is elsewhere
        return ""
    needed, meant = OTHER_OPTIONS.get(option, ("", ""))
    if needed in spellings:
        return f"here it is called: {meant}"
    if option in _IN_BACKGROUND and verb in ("start", "run"):
        return "poolctl start runs servers in the background, poolctl run in the foreground"
    if option in ("-a", "--all") and command and command.selection:
        return "without a selection, every server is meant"
    near = nearest_word(option, [each for each in spellings if each.startswith("--")])
    return f"did you mean {near}?" if near else ""


def _corrected_command_line(option: str, words: Sequence[str]) -> str:
    """The corrected command line if `option` precedes a command that accepts it, otherwise "".

    All words before the command are moved to the end of the line: `poolctl -n 5 logs` becomes `poolctl logs -n 5`.
    """
    at = next((at for at, word in enumerate(words) if command_named(word)), 0)
    command = command_named(words[at])
    if not at or command is None or not any(option in each.spellings for each in command.options):
        return ""
    return shlex.join(["poolctl", *words[at:], *words[:at]])
