"""What can be typed: commands, their options, and what may follow each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from poolctl.cli.app import WITH_COMMAND
from poolctl.cli.app.options import CHOICES
from poolctl.cli.commands.filter import FIELDS as FILTER_FIELDS
from poolctl.cli.request import FIELDS
from poolctl.cli.tabulate import commands as typer_commands

# Kinds of words that are asked for while somebody types; "files" and "directories" are the shell's own.
SERVERS, TAGS, POOLS, FILES, DIRECTORIES = "servers", "tags", "pools", "files", "directories"
_KINDS = {
    "config": FILES,
    "file": FILES,
    "pool": POOLS,
    "tag": TAGS,
    "targets": SERVERS,
    "directory": DIRECTORIES,
}
_WORDS = {
    **CHOICES,
    "field": FIELDS,
    "filter_field": FILTER_FIELDS,
    "target": FILTER_FIELDS,
    "shell": ("bash", "zsh", "fish"),
}


class Option(NamedTuple):
    """An option: its spellings, its help, and what may follow it."""

    spellings: tuple[str, ...]
    help: str
    takes_value: bool
    words: tuple[str, ...]
    kind: str


class Command(NamedTuple):
    """A command: its options, and what its positional words may be."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...]
    kind: str
    takes_command: bool

    @property
    def spellings(self) -> list[str]:
        """Every spelling of every option."""
        return [spelling for option in self.options for spelling in option.spellings]


def commands() -> list[Command]:
    """Every command, the first with the empty name for what may stand before a command."""
    return [_command(name, command) for name, command in typer_commands().items()]


def patterns_by_action(
    commands: list[Command], action: Callable[[Option], str]
) -> list[tuple[str, list[str]]]:
    """For `case VERB:OPTION`: what to do after options that take a value, exceptions before the rules.

    What an option means in most commands is said once, for every verb.
    """
    uses: dict[str, dict[str, list[str]]] = {}
    for command in commands:
        for option in (each for each in command.options if each.takes_value):
            for spelling in option.spellings:
                uses.setdefault(spelling, {}).setdefault(action(option), []).append(command.name)
    special: dict[str, list[str]] = {}
    general: dict[str, list[str]] = {}
    for spelling, verbs_by_action in uses.items():
        common, *rest = sorted(verbs_by_action, key=lambda each: -len(verbs_by_action[each]))
        general.setdefault(common, []).append(f"*:{spelling}")
        for each in rest:
            special.setdefault(each, []).extend(f"{verb}:{spelling}" for verb in verbs_by_action[each])
    return [*special.items(), *general.items()]


def case_script(
    commands: list[Command],
    head: str,
    tail: str,
    bar: str,
    action: Callable[[Option | Command], str],
    words_of: Callable[[Command, list[Command]], list[str]],
) -> str:
    """A script that branches by `case`: in its head for what takes a value, between head and tail for each command."""
    with_command = "|".join(command.name for command in commands if command.takes_command)
    lines = [head.replace("%(with_command)s", with_command).rstrip("\n")]
    for reaction, patterns in patterns_by_action(commands, action):
        lines.append(f"        {bar.join(patterns)}) {reaction}; return ;;")
    lines += ["    esac", "    case $verb in"]
    for command in commands:
        lines += words_of(command, commands)
    return "\n".join(lines) + "\n" + tail


def _command(name: str, command: Any) -> Command:
    options: list[Option] = []
    words: tuple[str, ...] = ()
    kind = ""
    for parameter in command.params:
        if parameter.opts[0].startswith("-"):
            options.append(_option(parameter, name))
        elif not words and not kind:
            words, kind = _words_of(parameter.name, name), _KINDS.get(parameter.name, "")
    if not any("-h" in option.spellings for option in options):
        options.append(Option(("-h", "--help"), "Show the help and exit", False, (), ""))
    text = str(command.help or "").splitlines()[0].rstrip(".")
    return Command(name, text, tuple(options), words, kind, name in WITH_COMMAND)


def _option(parameter: Any, command: str) -> Option:
    flag = bool(getattr(parameter, "is_flag", False))
    text = str(parameter.help or "").rstrip(".")
    words, kind = _words_of(parameter.name, command), _KINDS.get(parameter.name, "")
    return Option(tuple(parameter.opts), text, not flag, () if flag else words, "" if flag else kind)


def _words_of(name: str, command: str) -> tuple[str, ...]:
    if name == "output" and command == "config":
        return ("toml", *_WORDS["output"])
    if name == "output" and command in ("logs", "events"):
        return ("json", "jsonl")
    return tuple(_WORDS.get(name, ()))
