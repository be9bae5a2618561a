"""What Typer's classes lack: commands imported when they are named, `-- CMD`, and errors in poolctl's form.

The hooks are methods of Typer's own classes, so that CliRunner goes through them as well.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from poolctl.cli import completion, interrupts, report
from poolctl.cli.outcome import Outcome
from poolctl.cli.output import command_annotations
from poolctl.cli.render import is_rich
from poolctl.selection.selector import empty_value_error


class PoolGroup(TyperGroup):
    """The commands are placeholders with a name and one line of help: --help needs no more."""

    more: frozenset[str] = frozenset()  # names of the commands that only `help --all` lists
    modules: dict[str, str] = {}  # noqa: RUF012 (filled in by poolctl.cli.app)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names for help; completion offers the others too."""
        return [name for name in self.commands if ctx.resilient_parsing or name not in self.more]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is named. Typer's own did-you-mean knows the names of the placeholders."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            command = self.imported(args[0])
        return name, command, rest

    def imported(self, name: str) -> Any:
        """Import the module of the command, and return the command."""
        app: typer.Typer = import_module(self.modules[name]).app
        app.rich_markup_mode = self.rich_markup_mode
        return typer.main.get_command(app)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        command_position = next(
            (index for index, word in enumerate(args) if word in self.commands), len(args)
        )
        _refuse_empty_words(self, ctx, args[:command_position])
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and options by panel, as plain text for a pipe."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.commands[name]
            if not command.hidden:
                panels.setdefault(command.rich_help_panel, []).append((name, command.help))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_spacing=12 - max(len(name) for name, _ in rows))
        _write_panels(self, ctx, formatter)

    def main(self, args: Sequence[str] | None = None, *more: Any, **settings: Any) -> NoReturn:
        """Run the command line, and exit. CliRunner calls this method as well."""
        words = list(sys.argv[1:] if args is None else args)
        self.rich_markup_mode = "rich" if is_rich(sys.stdout) else None
        command_annotations.begin()
        if completion.VARIABLE in os.environ:
            with completion.whole_words():
                super().main(words, "poolctl")
        try:
            with self.make_context("poolctl", list(words)) as ctx:
                outcome = self.invoke(ctx)
            code = report.print_outcome(outcome) if isinstance(outcome, Outcome) else 0
            sys.stdout.flush()
        except typer.Exit as ended:
            code = ended.exit_code
        except SystemExit:  # of --install-completion
            raise
        except BaseException as error:
            code = report.explain(error, self, words)
        sys.exit(code)


class PoolCommand(TyperCommand):
    """A command whose function returns an Outcome."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_empty_words(self, ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; from here on Ctrl-C raises KeyboardInterrupt, so that it can clean up."""
        interrupts.let_ctrl_c_raise()
        outcome = super().invoke(ctx)
        if isinstance(outcome, Outcome):
            outcome.form = ctx.params.get("output") or outcome.form
            outcome.quiet = ctx.params.get("quiet", False)
        return outcome

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words after the command's name: arguments by their metavar alone, as all releases of Typer agree on."""
        arguments = [param.metavar for param in self.params if param.param_type_name == "argument"]
        return ["[OPTIONS]", *filter(None, arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options by panel, as plain text for a pipe."""
        arguments = [param for param in self.params if param.param_type_name == "argument"]
        rows = [
            (_without_brackets(argument.metavar), getattr(argument, "help", "") or "")
            for argument in arguments
        ]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        _write_panels(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, one per line, as plain text for a pipe."""
        head, *lines = (self.epilog or "").split("\n\n")
        if lines:
            formatter.write_paragraph()
            formatter.write("\n".join([head, *(f"  {line}" for line in lines)]) + "\n")


class TakesProgram(PoolCommand):
    """A command that takes a program and its arguments after `--`, as `ctx.args`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["program"] = at < len(args)
        super().parse_args(ctx, args[:at])
        ctx.args = args[at + 1 :]
        return args[at + 1 :]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- CMD...]"]


def _refuse_empty_words(command: Any, ctx: Any, args: list[str]) -> None:
    """Raise SelectorError for an empty word, which would match everything or count as missing."""
    options = {
        spelling: param.opts[-1]
        for param in command.params
        if param.param_type_name == "option" and not param.is_flag
        for spelling in param.opts
    }
    arguments = [
        _without_brackets(param.metavar) for param in command.params if param.param_type_name == "argument"
    ]
    argument = arguments[0] if len(arguments) == 1 else "an argument"
    for before, word in () if ctx.resilient_parsing else pairwise(["", *args]):
        if not word:
            raise empty_value_error(options.get(before, argument))
        if word.endswith("=") and word[:-1] in options:
            raise empty_value_error(options[word[:-1]])


def _without_brackets(metavar: str | None) -> str:
    return (metavar or "").strip("[].")


def _write_panels(command: Any, ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {"Options": [], "Selection": [], "Global options": []}
    for param in command.get_params(ctx):
        if param.param_type_name == "option" and not param.hidden:
            title = getattr(param, "rich_help_panel", None)
            title = title or ("Global options" if param.name == "help" else "Options")
            metavar = "" if param.is_flag else param.metavar or ""
            panels.setdefault(title, []).append(
                (f"{', '.join(param.opts)} {metavar}".rstrip(), param.help or "")
            )
    for title, rows in panels.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
