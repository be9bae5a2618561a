"""The words of a command line: commands, their options, and the values of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from poolctl.cli.command import COMMON, Option, command_named, flag, names

_HELP = flag("help", "-h", "--help", help="Show the help and exit.")
_VERSION = flag("version", "--version", help="Show the version and exit.")


class Completed(NamedTuple):
    """A command as a script completes it; the first one, without a name, is what may stand before a command."""

    name: str
    help: str
    options: list[Option]
    argument: Option | None
    takes_command: bool

    @property
    def spellings(self) -> list[str]:
        """Every spelling of every option."""
        return [spelling for option in self.options for spelling in option.spellings]


def completed() -> list[Completed]:
    """Every command, the first with the empty name for what may stand before a command."""
    found = [Completed("", "", [*COMMON, _VERSION, _HELP], None, False)]
    for name in names():
        command = command_named(name)
        if command is not None:
            argument = command.arguments[0] if command.arguments else None
            options = [*command.options, _HELP]
            found.append(Completed(name, text(command.help), options, argument, command.takes_command))
    return found


def text(help: str) -> str:
    """A sentence of the help without its full stop."""
    return help.rstrip(".")


def patterns_by_action(
    commands: list[Completed], action: Callable[[Option], str]
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
    commands: list[Completed],
    head: str,
    tail: str,
    bar: str,
    action: Callable[[Option], str],
    words_of: Callable[[Completed, list[Completed]], list[str]],
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
