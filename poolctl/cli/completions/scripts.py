"""The completion scripts of shells, made from what the commands declare."""

from __future__ import annotations

from poolctl.cli.command import (
    COMMON,
    DIRECTORIES,
    FILES,
    HELP_OPTION,
    VERSION_OPTION,
    Command,
    Option,
    command_named,
    names,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

SHELLS = ("bash", "zsh", "fish")
# How each shell completes words, files, directories, what it asks poolctl for, a value that it does not know, and
# words or fields with commas between them.
_ACTIONS = {
    "bash": (
        "_poolctl_words '{}'", "_poolctl_files -f", "_poolctl_files -d", "_poolctl_ask {}", ":",
        "_poolctl_fields '{}' '{}'",
    ),
    "zsh": (
        "compadd -- {}", "_files", "_files -/", "_poolctl_ask {}", "_message 'a value'", "_poolctl_fields '{}' '{}'",
    ),
    "fish": (
        "-a '{}'", "-F", "-a '(__fish_complete_directories)'", "-a '(__poolctl_ask {})'", "",
        '-a "(__poolctl_fields \'{}\' \'{}\')"',
    ),
}  # fmt: skip

Commands = dict[str, Command]


def script(shell: str) -> str:
    """The script of one of SHELLS."""
    commands = {name: command for name in names() if (command := command_named(name))}
    bar = {"bash": "|", "zsh": "|", "fish": " "}[shell]
    takes_command = bar.join(name for name, command in commands.items() if command.takes_command)
    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return make(commands).replace("%(with_command)s", takes_command)


def _options(command: Command | None) -> list[Option]:
    """The options of a command; of none, those that may stand before a command."""
    return [*(command.options if command else (*COMMON, VERSION_OPTION)), HELP_OPTION]


def _action(shell: str, option: Option, command: Command | None = None) -> str:
    words, files, directories, ask, unknown, fields = _ACTIONS[shell]
    if command and option.key == "output" and "name" in option.words:
        return fields.format(" ".join(option.words), " ".join(command.fields))
    if option.words:
        return words.format(" ".join(option.words))
    if option.completes in (FILES, DIRECTORIES):
        return files if option.completes == FILES else directories
    return ask.format(option.completes) if option.completes else unknown


def _argument(shell: str, command: Command) -> str:
    """How the command's first argument is completed; "" when nothing is known of it."""
    argument = command.arguments[0] if command.arguments else None
    return _action(shell, argument) if argument and (argument.words or argument.completes) else ""


def _values(shell: str, commands: Commands, bar: str) -> list[str]:
    """Branches of `case VERB:OPTION`: what to do after options that take a value, exceptions before the rules.

    What an option means in most commands is said once, for every verb.
    """
    uses: dict[str, dict[str, list[str]]] = {}
    for verb, command in [("", None), *commands.items()]:
        for option in (each for each in _options(command) if each.takes_value):
            for spelling in option.spellings:
                uses.setdefault(spelling, {}).setdefault(_action(shell, option, command), []).append(verb)
    special: dict[str, list[str]] = {}
    general: dict[str, list[str]] = {}
    for spelling, verbs_by_action in uses.items():
        common, *rest = sorted(verbs_by_action, key=lambda each: -len(verbs_by_action[each]))
        general.setdefault(common, []).append(f"*:{spelling}")
        for each in rest:
            special.setdefault(each, []).extend(f"{verb}:{spelling}" for verb in verbs_by_action[each])
    branches = [*special.items(), *general.items()]
    return [f"        {bar.join(patterns)}) {action}; return ;;" for action, patterns in branches]


def _branch(verb: str, condition: str, options: list[str], argument: list[str]) -> list[str]:
    """A command's branch of `case VERB`: its options after a hyphen, else its argument."""
    head = [f"        {verb or chr(39) * 2})", f"            if [[ {condition} == -* ]]; then"]
    return [*head, *options, "            else", *argument, "            fi", "            ;;"]


_BASH_HEAD = """\
# Completion of poolctl for bash. Made by: poolctl completion bash
# Load it with: source <(poolctl completion bash)

_poolctl_ask() { # servers, tags, backends or pools of the pool that the line is about
    local word=$cur words
    # bash takes the colons of an address for the ends of words
    [[ ${COMP_LINE-} ]] && word=${COMP_LINE:0:COMP_POINT} && word=${word##*[[:space:]=]}
    words=$("${COMP_WORDS[0]}" __complete "$1" "${pool[@]}" --word "$word" 2>/dev/null)
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    [[ $word != *:* ]] || COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
}

_poolctl_fields() { # forms of output, or fields with commas between them
    if [[ $cur == *,* ]]; then
        mapfile -t COMPREPLY < <(compgen -P "${cur%,*}," -W "$2" -- "${cur##*,}")
    else
        _poolctl_words "$1 $2"
    fi
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
_BASH_TAIL = """\
    esac
}

complete -F _poolctl poolctl
"""


def _bash(commands: Commands) -> str:
    def branch(verb: str, command: Command | None, argument: str) -> list[str]:
        spellings = " ".join(spelling for option in _options(command) for spelling in option.spellings)
        options = f"                _poolctl_words '{spellings}'"
        return _branch(verb, "$cur", [options], [f"                {argument}"])

    lines = [*_values("bash", commands, " | "), "    esac", "    case $verb in"]
    lines += branch("", None, f"_poolctl_words '{' '.join(commands)}'")
    for verb, command in commands.items():
        lines += branch(verb, command, _argument("bash", command) or ":")
    return _BASH_HEAD + "\n".join(lines) + "\n" + _BASH_TAIL


_ZSH_HEAD = """\
#compdef poolctl
# Completion of poolctl for zsh. Made by: poolctl completion zsh
# Load it with: source <(poolctl completion zsh), or put it as _poolctl into a directory of $fpath

_poolctl_ask() { # servers, tags, backends or pools of the pool that the line is about
    local -a found=(${(f)"$(${words[1]} __complete $1 $pool --describe --word "${words[CURRENT]}" 2>/dev/null)"})
    local -a described=(${${found//:/\\\\:}/$'\\t'/:})
    _describe $1 described
}

_poolctl_fields() { # forms of output, or fields with commas between them
    if compset -P '*,'; then
        compadd -- ${=2}
    else
        compadd -- ${=1} ${=2}
    fi
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
_ZSH_TAIL = """\
    esac
}

if [[ $funcstack[1] == _poolctl ]]; then
    _poolctl "$@"
else
    compdef _poolctl poolctl
fi
"""


def _zsh(commands: Commands) -> str:
    def described(entries: list[tuple[str, str]], describe: str) -> list[str]:
        lines = [f"                    {_zsh_entry(word, help)}" for word, help in entries]
        return [
            "                described=(",
            *lines,
            "                )",
            f"                {describe} described",
        ]

    def branch(verb: str, command: Command | None, argument: list[str]) -> list[str]:
        spellings = [(word, option.help) for option in _options(command) for word in option.spellings]
        options = described(spellings, "_describe -o option")
        return _branch(verb, "${words[CURRENT]}", options, argument)

    lines = [*_values("zsh", commands, "|"), "    esac", "    case $verb in"]
    helps = [(verb, command.help) for verb, command in commands.items()]
    lines += branch("", None, described(helps, "_describe command"))
    for verb, command in commands.items():
        lines += branch(verb, command, [f"                {_argument('zsh', command) or ':'}"])
    return _ZSH_HEAD + "\n".join(lines) + "\n" + _ZSH_TAIL


def _zsh_entry(word: str, help: str) -> str:
    plain = help.rstrip(".").replace("'", "’").replace("\\", "\\\\").replace(":", "\\:")
    return f"'{word}:{plain}'"


_FISH_HEAD = """\
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

function __poolctl_ask # servers, tags, backends or pools of the pool that the line is about
    set -l words (commandline -opc)
    set -l pool
    for at in (seq 2 (math (count $words) - 1))
        switch $words[$at]
            case -c --config --pool
                set pool $pool $words[$at] $words[(math $at + 1)]
        end
    end
    set -l word (commandline -ct)
    $words[1] __complete $argv[1] $pool --describe --word "$word" 2>/dev/null
end

function __poolctl_fields # forms of output, or fields with commas between them
    set -l before (string match -r '.*,' -- (commandline -ct | string replace -r '^(--output=|-o)' ''))
    if test -n "$before"
        string split ' ' -- $argv[2] | string replace -r '^' -- "$before"
    else
        string split ' ' -- $argv[1] $argv[2]
    end
end

complete -c poolctl -f
complete -c poolctl -n __poolctl_own -F
"""


def _fish(commands: Commands) -> str:
    first = "complete -c poolctl -n 'not __poolctl_verb >/dev/null'"
    lines = [f"{first} {_fish_option(option)}" for option in _options(None)]
    for verb, command in commands.items():
        within = f"complete -c poolctl -n '__poolctl_in {verb}'"
        lines.append(f"{first} -a {verb} -d {_fish_text(command.help)}")
        lines += [f"{within} {_fish_option(option, command)}" for option in _options(command)]
        if argument := _argument("fish", command):
            lines.append(f"{within} {argument}")
    return _FISH_HEAD + "\n".join(lines) + "\n"


def _fish_option(option: Option, command: Command | None = None) -> str:
    words = [f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in option.spellings]
    if option.takes_value:
        words += [
            "-r" if option.completes in (FILES, DIRECTORIES) else "-x",
            _action("fish", option, command),
        ]
    return " ".join([*filter(None, words), "-d", _fish_text(option.help)])


def _fish_text(help: str) -> str:
    escaped = help.rstrip(".").replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
