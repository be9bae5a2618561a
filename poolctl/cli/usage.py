"""Command lines that are not understood: what is wrong with them, in one line, with the mend."""

from __future__ import annotations

from poolctl.cli.outcome import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# Options before the command that take a value: the word after them is not the command.
_VALUED = ("-c", "--config", "--pool")
# Commands that a later version has.
_LATER = ("import",)


def split(args: Sequence[str], with_command: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The words of poolctl's own, and the user's command after `--` where the verb takes one."""
    words = list(args)
    if verb_of(words) not in with_command:
        return words, {}
    if "--" not in words:
        return words, {"command": []}
    at = words.index("--")
    return words[:at], {"command": words[at + 1 :]}


def as_help(words: Sequence[str]) -> list[str]:
    """`help`, or `help COMMAND`, as the option that says the same; other words as they are."""
    at = _verb_at(words)
    if words[at : at + 1] != ["help"]:
        return list(words)
    return [*words[:at], *words[at + 1 :], "--help"]


def verb_of(words: Sequence[str]) -> str:
    """The command's name in a command line, "" if there is none."""
    return "".join(words[_verb_at(words) :][:1])


def _verb_at(words: Sequence[str]) -> int:
    """Where the command's name stands; the end if there is none."""
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


def as_usage_error(error: Exception, words: Sequence[str]) -> UsageError | None:
    """What the option parser says, in our words; None for an error that is not the parser's.

    Told by its methods: releases of Typer differ in where the class comes from.
    """
    describe = getattr(error, "format_message", None)
    if describe is None or getattr(error, "exit_code", None) != 2:
        return None
    message = str(describe()).strip().rstrip(".")
    near = getattr(error, "possibilities", None)
    verb = verb_of(words)
    if verb in _LATER:
        return UsageError(f"{verb} is not available in this version of poolctl", hint="poolctl -h")
    hint = f"poolctl {verb} -h" if verb and "command" not in message else "poolctl -h"
    if near:
        hint = f"did you mean {_nearest(str(getattr(error, 'option_name', '')), near)}?"
    if "Did you mean" in message:
        message, _, guess = message.partition(" Did you mean")
        hint = f"did you mean{guess}".rstrip("?") + "?"
    message = message.partition(" (Possible options")[0]
    message = message.rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _nearest(typed: str, near: Sequence[str]) -> str:
    """The one that was most likely meant: one that begins so, else one that looks so."""
    import difflib

    longer = [each for each in near if each.startswith(typed)]
    return (longer or difflib.get_close_matches(typed, near, n=1, cutoff=0.0))[0]
