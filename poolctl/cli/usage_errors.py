"""Explains mistakes in a command line, each in one sentence with its fix, including words of other tools."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from poolctl.cli.command import COMMON, HELP_OPTION, command_named, names
from poolctl.cli.command_line import near_word, verb_of
from poolctl.cli.outcome import UsageError
from poolctl.exit_codes import USAGE

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
    "check": "validate",
    "serve": "run",
}
# Their options: our option that the command must have ("" for none), and how to use it.
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
    """The UsageError for an error of the option parser; None for any other error.

    Parser errors are recognised by their methods, because releases of Typer differ in the class's module.
    """
    describe = getattr(error, "format_message", None)
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
    if meant := OTHER_COMMANDS.get(verb):
        return f"here it is called: poolctl {meant}"
    near = near_word(verb, names())
    return f"did you mean {near!r}?" if near else ""


def _option_hint(option: str, verb: str, words: Sequence[str]) -> str:
    """The option's equivalent here, or the option probably meant; "" if there is no similar one."""
    if moved := _after_command(option, words):
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
    near = near_word(option, [each for each in spellings if each.startswith("--")])
    return f"did you mean {near}?" if near else ""


def _after_command(option: str, words: Sequence[str]) -> str:
    """The command line with the option moved after the command that has it; "" if it is in its place."""
    at = next((at for at, word in enumerate(words) if command_named(word)), 0)
    command = command_named(words[at])
    if not at or command is None or not any(option in each.spellings for each in command.options):
        return ""
    return shlex.join(["poolctl", *words[at:], *words[:at]])
