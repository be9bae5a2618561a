"""The completion script for zsh."""

from __future__ import annotations

from poolctl.cli.command import DIRECTORIES, FILES, Option
from poolctl.cli.completions.command_words import Completed, case_script, text

_HEAD = """\
#compdef poolctl
# Completion of poolctl for zsh. Made by: poolctl completion zsh
# Load it with: source <(poolctl completion zsh), or put it as _poolctl into a directory of $fpath

_poolctl_ask() { # servers, tags or pools of the pool that the line is about
    local -a found=(${(f)"$(${words[1]} __complete $1 $pool 2>/dev/null)"})
    compadd -- $found
}

_poolctl() {
    local verb prev=${words[CURRENT-1]}
    local -a pool described
    integer i
    for ((i = 2; i < CURRENT; i++)); do
        case ${words[i]} in
            --)
                if [[ $verb == (%(with_command)s) ]]; then # from here on it is the user's own command
                    words=("${(@)words[i+1,-1]}")
                    ((CURRENT -= i))
                    _normal
                fi
                return
                ;;
            -c|--config|--pool)
                ((i + 1 < CURRENT)) && pool+=("${words[i]}" "${words[i+1]}")
                ((i++))
                ;;
            --config=*|--pool=*) pool+=("${words[i]%%=*}" "${words[i]#*=}") ;;
            -*) ;;
            *) [[ -n $verb ]] || verb=${words[i]} ;;
        esac
    done
    if [[ ${words[CURRENT]} == --*=* ]]; then
        prev=${words[CURRENT]%%=*}
        compset -P '*='
    fi
    case $verb:$prev in
"""
_TAIL = """\
    esac
}

if [[ $funcstack[1] == _poolctl ]]; then
    _poolctl "$@"
else
    compdef _poolctl poolctl
fi
"""


def script(commands: list[Completed]) -> str:
    """The script."""
    return case_script(commands, _HEAD, _TAIL, "|", _action, _words_of)


def _action(option: Option) -> str:
    if option.words:
        return f"compadd -- {' '.join(option.words)}"
    if option.completes in (FILES, DIRECTORIES):
        return "_files" if option.completes == FILES else "_files -/"
    return f"_poolctl_ask {option.completes}" if option.completes else "_message 'a value'"


def _words_of(command: Completed, commands: list[Completed]) -> list[str]:
    options = [_described(s, text(option.help)) for option in command.options for s in option.spellings]
    if not command.name:
        names = [_described(each.name, each.help) for each in commands if each.name]
        positional = [*_array(names), "                _describe command described"]
    else:
        argument = command.argument
        known = argument is not None and (argument.words or argument.completes)
        positional = [f"                {_action(argument) if argument and known else ':'}"]
    return [
        f"        {command.name or chr(39) * 2})",
        "            if [[ ${words[CURRENT]} == -* ]]; then",
        *_array(options),
        "                _describe -o option described",
        "            else",
        *positional,
        "            fi",
        "            ;;",
    ]


def _array(entries: list[str]) -> list[str]:
    return [
        "                described=(",
        *(f"                    {entry}" for entry in entries),
        "                )",
    ]


def _described(word: str, text: str) -> str:
    plain = text.replace("'", "’").replace("\\", "\\\\").replace(":", "\\:")
    return f"'{word}:{plain}'"
