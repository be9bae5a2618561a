"""The completion script for bash (4.4 or newer)."""

from __future__ import annotations

from poolctl.cli.command import DIRECTORIES, FILES, Option
from poolctl.cli.completions.command_words import Completed, case_script

_HEAD = """\
# Completion of poolctl for bash. Made by: poolctl completion bash
# Load it with: source <(poolctl completion bash)

_poolctl_ask() { # servers, tags or pools of the pool that the line is about
    mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" __complete "$1" "${pool[@]}" 2>/dev/null)" -- "$cur")
}

_poolctl_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}

_poolctl_files() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen "$1" -- "$cur")
}

_poolctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb='' option i
    local -a pool=()
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --)
                if [[ $verb == @(%(with_command)s) ]]; then # from here on it is the user's own command
                    if ((COMP_CWORD == i + 1)); then
                        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
                    else
                        _poolctl_files -f
                    fi
                fi
                return
                ;;
            -c | --config | --pool)
                option=${COMP_WORDS[i]}
                [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
                ((i + 1 < COMP_CWORD)) && pool+=("$option" "${COMP_WORDS[i + 1]}")
                ((i++))
                ;;
            -*) ;;
            *) [[ $verb ]] || verb=${COMP_WORDS[i]} ;;
        esac
    done
    # bash takes --option=value for three words
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $verb:$prev in
"""
_TAIL = """\
    esac
}

complete -F _poolctl poolctl
"""


def script(commands: list[Completed]) -> str:
    """The script."""
    return case_script(commands, _HEAD, _TAIL, " | ", _action, _words_of)


def _action(option: Option) -> str:
    if option.words:
        return f"_poolctl_words '{' '.join(option.words)}'"
    if option.completes in (FILES, DIRECTORIES):
        return f"_poolctl_files {'-f' if option.completes == FILES else '-d'}"
    return f"_poolctl_ask {option.completes}" if option.completes else ":"


def _words_of(command: Completed, commands: list[Completed]) -> list[str]:
    words = " ".join(command.spellings)
    if not command.name:
        names = " ".join(each.name for each in commands if each.name)
        positional = f"_poolctl_words '{names}'"
    else:
        positional = _action(command.argument) if command.argument else ":"
    pattern = command.name or "''"
    return [
        f"        {pattern})",
        "            if [[ $cur == -* ]]; then",
        f"                _poolctl_words '{words}'",
        "            else",
        f"                {positional}",
        "            fi",
        "            ;;",
    ]
