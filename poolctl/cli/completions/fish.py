"""The completion script for fish."""

from __future__ import annotations

from poolctl.cli.command import DIRECTORIES, FILES, Option
from poolctl.cli.completions.command_words import Completed, text

_HEAD = """\
# Completion of poolctl for fish. Made by: poolctl completion fish
# Load it with: poolctl completion fish | source

function __poolctl_verb # the command in the line, if it is there already
    set -l words (commandline -opc)
    set -l skip 1
    for word in $words
        if test $skip -gt 0
            set skip (math $skip - 1)
            continue
        end
        switch $word
            case -c --config --pool
                set skip 1
            case '-*'
            case '*'
                echo $word
                return 0
        end
    end
    return 1
end

function __poolctl_in # whether the command is one of these, and the user's own command has not begun
    set -l verb (__poolctl_verb); or return 1
    contains -- $verb $argv; and not contains -- -- (commandline -opc)
end

function __poolctl_own # whether the user's own command has begun
    set -l verb (__poolctl_verb); or return 1
    contains -- $verb %(with_command)s; and contains -- -- (commandline -opc)
end

function __poolctl_ask # servers, tags or pools of the pool that the line is about
    set -l words (commandline -opc)
    set -l pool
    for at in (seq 2 (math (count $words) - 1))
        switch $words[$at]
            case -c --config --pool
                set pool $pool $words[$at] $words[(math $at + 1)]
        end
    end
    $words[1] __complete $argv[1] $pool 2>/dev/null
end

complete -c poolctl -f
complete -c poolctl -n __poolctl_own -F
"""


def script(commands: list[Completed]) -> str:
    """The script."""
    with_command = " ".join(command.name for command in commands if command.takes_command)
    lines = [_HEAD.replace("%(with_command)s", with_command).rstrip("\n")]
    for command in commands:
        condition = f"'__poolctl_in {command.name}'" if command.name else "'not __poolctl_verb >/dev/null'"
        if command.name:
            lines.append(
                f"complete -c poolctl -n 'not __poolctl_verb >/dev/null' -a {command.name} -d {_text(command.help)}"
            )
        lines += [f"complete -c poolctl -n {condition} {_option(option)}" for option in command.options]
        positional = _values(command.argument) if command.argument else ""
        if command.name and positional:
            lines.append(f"complete -c poolctl -n {condition} {positional}")
    return "\n".join(lines) + "\n"


def _option(option: Option) -> str:
    names = [f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in option.spellings]
    value = []
    if option.takes_value:
        value = ["-r" if option.completes in (FILES, DIRECTORIES) else "-x", *filter(None, [_values(option)])]
    return " ".join([*names, *value, "-d", _text(text(option.help))])


def _values(option: Option) -> str:
    if option.words:
        return f"-a '{' '.join(option.words)}'"
    if option.completes == FILES:
        return "-F"
    if option.completes == DIRECTORIES:
        return "-a '(__fish_complete_directories)'"
    return f"-a '(__poolctl_ask {option.completes})'" if option.completes else ""


def _text(words: str) -> str:
    escaped = words.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
