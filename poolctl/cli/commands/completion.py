"""`poolctl completion SHELL`: prints or installs the completion script for a shell."""

from __future__ import annotations

import os
import shlex
import stat

from poolctl.cli.command_line import Command, CommandRequest, Option, flag, one_of
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.exit_codes import FAILED, NOT_PERMITTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Each calls `poolctl __complete` for every word (poolctl/cli/completions.py).
_BASH = r"""# Completion of poolctl for bash. Made by: poolctl completion bash
# Load it with: source <(poolctl completion bash)

_poolctl() {
    local rest=${COMP_LINE:0:COMP_POINT} blanks word i
    local -a words=() found=()
    # bash takes `=` and `:` for words of their own: what no blank separates is put together again
    for ((i = 0; i <= COMP_CWORD; i++)); do
        blanks=${rest%%[![:blank:]]*} rest=${rest#"${rest%%[![:blank:]]*}"}
        word=$rest && ((i == COMP_CWORD)) || word=${COMP_WORDS[i]}
        if [[ $blanks || $i == 0 ]]; then words+=("$word"); else words[-1]+=$word; fi
        rest=${rest#"$word"}
    done
    [[ $word != [=:] ]] || word=''
    mapfile -t found < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
    COMPREPLY=()
    case ${found[0]-}:${words[-2]} in
        :command:--) mapfile -t COMPREPLY < <(compgen -c -- "$word") ;;
        :files:* | :command:*) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
        :directories:*) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
        [!:]*) found=("${found[@]%%$'\t'*}") COMPREPLY=("${found[@]#"${words[-1]%"$word"}"}") ;;
    esac
} 2>/dev/null

complete -F _poolctl poolctl
"""
_ZSH = r"""#compdef poolctl
# Completion of poolctl for zsh. Made by: poolctl completion zsh
# Load it with: source <(poolctl completion zsh), or put it as _poolctl into a directory of $fpath

_poolctl() {
    local -a found=(${(f)"$(${words[1]} __complete "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)"})
    case ${found[1]-} in
        :files) compset -P '--*='; _files ;;
        :directories) compset -P '--*='; _files -/ ;;
        :command)
            integer at=${words[(i)--]}
            shift $at words
            ((CURRENT -= at))
            _normal
            ;;
        *)
            found=(${${found//:/\\:}/$'\t'/:})
            _describe poolctl found
            ;;
    esac
}

if [[ $funcstack[1] == _poolctl ]]; then
    _poolctl "$@"
else
    compdef _poolctl poolctl
fi
"""
_FISH = r"""# Completion of poolctl for fish. Made by: poolctl completion fish
# Load it with: poolctl completion fish | source

function __poolctl_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l option (string match -r -- '^--[^=]*=' "$word")
    set -l path (string replace -- "$option" '' "$word")
    for line in ($words[1] __complete $words[2..] "$word" 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path "$path" | string replace -r '^' -- "$option"
            case :directories
                __fish_complete_directories "$path" '' | string replace -r '^' -- "$option"
            case :command
                set -l own $words[(math (contains -i -- -- $words) + 1)..]
                complete -C (string join -- ' ' (string escape -- $own) "$word")
            case '*'
                echo $line
        end
    end
end

complete -c poolctl -f -a '(__poolctl_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

COMMAND = Command(
    "Print, or install, the completion script of a shell.",
    Option("shell", metavar="SHELL", words=tuple(SCRIPTS), help="bash, zsh or fish; default: $SHELL."),
    flag("install", "--install", help="Write it where the shell of this user loads it."),
    section="Machine",
    examples=("poolctl completion --install", "poolctl completion zsh > _poolctl"),
)


def perform(request: CommandRequest) -> Outcome:
    """The script as text, or the files written."""
    shell = request.get("shell") or os.path.basename(os.environ.get("SHELL", ""))
    if not shell:
        raise UsageError("no shell is given, and $SHELL is not set", hint=f"one of: {', '.join(SCRIPTS)}")
    text = SCRIPTS[one_of("SHELL", shell, tuple(SCRIPTS))]
    if not request.get("install"):
        return Outcome(text=text)
    written = _install(shell, text, os.environ)
    if not written:
        return Outcome(message=f"the completion of {shell} is installed already")
    return Outcome(message=f"wrote {' and '.join(written)}; new shells complete poolctl")


_MARK = "# completion of poolctl"


def _install(shell: str, text: str, env: Mapping[str, str]) -> list[str]:
    """Write the script and the line that loads it; returns the paths of changed files, empty if already installed.

    Raises Failure for a home that is not this user's, as under sudo, and for files that cannot be written.
    """
    home = env.get("HOME") or os.path.expanduser("~")
    script, start_file, line = _places(shell, home, env)
    try:
        for path in filter(None, (home, script, start_file)):
            _refuse_if_foreign(path)
        changed = [script] if _write(script, text) else []
        if start_file and _append(start_file, f"{line} {_MARK}\n"):
            changed.append(start_file)
    except OSError as error:
        message = f"cannot write {error.filename}: {error.strerror}"
        hint = f"poolctl completion {shell} prints the script"
        raise Failure(Outcome.failed(FAILED, message, hint)) from None
    return changed


def _places(shell: str, home: str, env: Mapping[str, str]) -> tuple[str, str, str]:
    """The script's path, the shell's startup file ("" if none is needed), and the line for it."""
    data = env.get("XDG_DATA_HOME") or f"{home}/.local/share"
    if shell == "fish":
        config = env.get("XDG_CONFIG_HOME") or f"{home}/.config"
        return f"{config}/fish/completions/poolctl.fish", "", ""
    if shell == "zsh":
        script = f"{data}/zsh/site-functions/_poolctl"
        begin = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; };"
        path = f"{env.get('ZDOTDIR') or home}/.zshrc"
    else:
        script, begin, path = f"{data}/bash-completion/completions/poolctl", "", f"{home}/.bashrc"
    there = shlex.quote(script)
    words = ["[[", "!", "-r", there, "]]", "||", "{", begin, "source", f"{there};", "}"]
    return script, path, " ".join(filter(None, words))


def _refuse_if_foreign(path: str) -> None:
    """Raise Failure if the file, or the directory for a missing file, belongs to another user."""
    while not os.path.lexists(path):
        path = os.path.dirname(path) or "."
    for found in (os.lstat(path), os.stat(path)):
        if found.st_uid not in (os.geteuid(), *([0] if stat.S_ISDIR(found.st_mode) else [])):
            message = f"{path} belongs to another user"
            hint = "run it as that user: without sudo, or with `sudo -H` for root itself"
            raise Failure(Outcome.failed(NOT_PERMITTED, message, hint))


def _write(path: str, text: str) -> bool:
    """Replace the file's content; False if it is unchanged."""
    if _content(path) == text:
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _append(path: str, line: str) -> bool:
    """Add the line to the file; False if it is already there."""
    before = _content(path)
    if line in before.splitlines(keepends=True):
        return False
    with open(path, "a", encoding="utf-8") as file:
        file.write(line if not before or before.endswith("\n") else f"\n{line}")
    return True


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""
