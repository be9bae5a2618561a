"""A command line is read: plain spellings here, in the fast lane; the Typer application reads the others.

Whatever is not plain (help, clusters, values that look like options) is left to Typer, which also reports what is
wrong with it.
"""

from __future__ import annotations

from poolctl.cli.command import COMMON, FLAG, LIST
from poolctl.cli.command_request import CommandRequest
from poolctl.cli.commands import command_named
from poolctl.values import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolctl.cli.command import Option

# Options before the command that take a value: the word after them is not the command.
_VALUED = tuple(spelling for option in COMMON if option.takes_value for spelling in option.spellings)


def parse(args: Sequence[str]) -> CommandRequest | None:
    """The request of a plainly spelled command; None for everything else."""
    given: Table = {}
    words = list(args)
    if "--" in words:
        at = words.index("--")
        given["command"] = words[at + 1 :]
        del words[at:]
    verb, command, table = "", None, _by_spelling(COMMON)
    arguments: list[Option] = []
    words.reverse()
    while words:
        word = words.pop()
        if not word:
            return None
        if word.startswith("-"):
            if not _take_option(word, words, table, given):
                return None
        elif command is None:
            command = command_named(word)
            if command is None:
                return None
            verb, table, arguments = word, _by_spelling(command.options), command.arguments[::-1]
        elif not arguments:
            return None
        elif arguments[-1].kind == LIST:
            given.setdefault(arguments[-1].key, []).append(word)
        else:
            given[arguments.pop().key] = word
    if command is None or ("command" in given and not command.takes_command):
        return None
    if any(argument.required and argument.key not in given for argument in command.arguments):
        return None
    values: Table = {"command": []} if command.takes_command else {}
    for option in (*command.arguments, *command.options):
        values[option.key] = False if option.kind == FLAG else [] if option.kind == LIST else None
    return CommandRequest(verb, {**values, **given})


def _by_spelling(options: Sequence[Option]) -> dict[str, Option]:
    return {spelling: option for option in options for spelling in option.spellings}


def _take_option(word: str, rest: list[str], table: dict[str, Option], given: Table) -> bool:
    """Put the option into `given`, with its value from the end of `rest`; False if it is not plain."""
    name, equals, value = word.partition("=")
    if not word.startswith("--") and len(word) > 2:
        name, equals, value = word[:2], "=", word[2:]
    option = table.get(name)
    if option is None:
        return False
    if option.kind == FLAG:
        given[option.key] = True
        return not equals
    if not equals:
        if not rest or not rest[-1] or rest[-1].startswith("-"):
            return False
        value = rest.pop()
    if option.kind == LIST:
        given.setdefault(option.key, []).append(value)
    else:
        given[option.key] = value
    return True


def split(args: Sequence[str]) -> tuple[list[str], Table]:
    """The words of poolctl's own, and the user's command after `--` where the command takes one."""
    words = list(args)
    command = command_named(verb_of(words))
    if command is None or not command.takes_command:
        return words, {}
    if "--" not in words:
        return words, {"command": []}
    at = words.index("--")
    return words[:at], {"command": words[at + 1 :]}


def as_help(words: Sequence[str]) -> list[str]:
    """`help`, or `help COMMAND`, as the option that means the same; other words unchanged."""
    at = _verb_at(words)
    if words[at : at + 1] != ["help"]:
        return list(words)
    return [*words[:at], *words[at + 1 :], "--help"]


def verb_of(words: Sequence[str]) -> str:
    """The command's name in a command line, "" if there is none."""
    return "".join(words[_verb_at(words) :][:1])


def _verb_at(words: Sequence[str]) -> int:
    """The position of the command's name; the end if there is none."""
    at = 0
    while at < len(words) and words[at] != "--":
        if not words[at].startswith("-"):
            return at
        at += 2 if words[at] in _VALUED else 1
    return len(words)


def wants_json(args: Sequence[str]) -> bool:
    """Whether a command line that may be wrong elsewhere asks for JSON: then its error is a document too."""
    words = list(args[: args.index("--")]) if "--" in args else list(args)
    return any(
        word in ("-ojson", "-o=json", "--output=json")
        or (word in ("-o", "--output") and words[at + 1 : at + 2] == ["json"])
        for at, word in enumerate(words)
    )
