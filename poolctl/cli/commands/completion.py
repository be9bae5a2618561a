"""`poolctl completion SHELL`: prints or installs the completion script for a shell.

The script calls `poolctl __complete WORD...` on every press of Tab. This hidden command prints the completions of the
last word, one per line; a description may follow after a tab. The lines `:files`, `:directories` and `:command` ask the
shell to complete a file, a directory, or the command after `--`. It must be fast, never fails, and prints nothing else.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys

from poolctl.cli.command_line import (
    BACKEND_ACTIONS,
    COMMON,
    HELP_OPTION,
    VERSION_OPTION,
    Command,
    CommandRequest,
    Option,
    by_spelling,
    command_named,
    flag,
    names,
    split_option,
    validate_choice,
)
from poolctl.cli.outcome import Failure, Outcome, UsageError
from poolctl.cli.pool_ref import PoolRef, find_pool
from poolctl.control.client import Client
from poolctl.control.pool_paths import runtime_root_candidates
from poolctl.errors import ControlError
from poolctl.exit_codes import FAILED, NOT_PERMITTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from poolctl.json_form import Table

    Offer = tuple[str, str]  # a word and its description

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
    Option("shell", "SHELL", "bash, zsh or fish; default: $SHELL.", words=tuple(SCRIPTS)),
    flag("--install", "Write it where the shell of this user loads it."),
    section="Machine",
    examples=("poolctl completion --install", "poolctl completion zsh > _poolctl"),
)


def perform(request: CommandRequest) -> Outcome:
    """Return the shell's completion script as text; with --install, write the script to files, and name the files."""
    shell = request.get("shell") or os.path.basename(os.environ.get("SHELL", ""))
    if not shell:
        raise UsageError("no shell is given, and $SHELL is not set", hint=f"one of: {', '.join(SCRIPTS)}")
    text = SCRIPTS[validate_choice("SHELL", shell, tuple(SCRIPTS))]
    if not request.get("install"):
        return Outcome(text=text)
    written = _install_and_list_changed_files(shell, text, os.environ)
    if not written:
        return Outcome(message=f"the completion of {shell} is installed already")
    return Outcome(message=f"wrote {' and '.join(written)}; new shells complete poolctl")


_MARK = "# completion of poolctl"


def _install_and_list_changed_files(shell: str, text: str, env: Mapping[str, str]) -> list[str]:
    """Write the script and the line that loads it; returns the paths of changed files.

    Raises Failure if they belong to another user, or cannot be written.
    """
    home = os.path.expanduser("~")
    script, start_file, line = _installation_paths_with_rc_line(shell, home, env)
    try:
        for path in filter(None, (home, script, start_file)):
            _refuse_other_users_file(path)
        changed = [script] if _write_if_changed(script, text) else []
        if start_file and _append_if_missing(start_file, f"{line} {_MARK}\n"):
            changed.append(start_file)
    except OSError as error:
        message = f"cannot write {error.filename}: {error.strerror}"
        hint = f"poolctl completion {shell} prints the script"
        raise Failure(Outcome.failed(FAILED, message, hint)) from None
    return changed


def _installation_paths_with_rc_line(shell: str, home: str, env: Mapping[str, str]) -> tuple[str, str, str]:
    """The paths of the script and of the shell's startup file, and the line there that loads the script.

    The last two are "" for fish, which needs no such line.
    """
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


def _refuse_other_users_file(path: str) -> None:
    """Raise Failure if the file, or the directory for a missing file, belongs to another user."""
    while not os.path.lexists(path):
        path = os.path.dirname(path) or "."
    for found in (os.lstat(path), os.stat(path)):
        if found.st_uid not in (os.geteuid(), *([0] if stat.S_ISDIR(found.st_mode) else [])):
            message = f"{path} belongs to another user"
            hint = "run it as that user: without sudo, or with `sudo -H` for root itself"
            raise Failure(Outcome.failed(NOT_PERMITTED, message, hint))


def _write_if_changed(path: str, text: str) -> bool:
    """Give the file this content; returns whether that has changed the file."""
    if _content_or_empty(path) == text:
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _append_if_missing(path: str, line: str) -> bool:
    """Add the line to the file unless it is already there; returns whether it was added."""
    before = _content_or_empty(path)
    if line in before.splitlines(keepends=True):
        return False
    with open(path, "a", encoding="utf-8") as file:
        file.write(line if not before or before.endswith("\n") else f"\n{line}")
    return True


def _content_or_empty(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""


ANSWER_SECONDS = 1.0
# Words that need quoting are not offered.
_word = re.compile(r"[A-Za-z0-9._@%+,:=/-]+")


def complete(words: Sequence[str]) -> int:
    """Print the completions of the last word; always returns 0."""
    try:
        found = [(word, meaning) for word, meaning in _offers(words) if _word.fullmatch(word)]
        sys.stdout.write("".join(f"{word}\t{meaning}".rstrip() + "\n" for word, meaning in found))
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt):
        return 0
    return 0


def _offers(words: Sequence[str]) -> Iterable[Offer]:
    *before, last = words or [""]
    own = before.index("--") if "--" in before else None
    line = _CommandLine(before[:own])
    if own is not None:
        return [(":command", "")] if line.command and line.command.takes_command else []
    if line.awaiting:
        return _values(line, line.awaiting, last)
    if last.startswith("-"):
        option, head, value = split_option(last, line.options)
        if option and value is not None:
            return [
                (word if word.startswith(":") else head + word, meaning)
                for word, meaning in _values(line, option, value)
            ]
        return [
            (word, each.help.removesuffix("."))
            for word, each in line.options.items()
            if word.startswith(last)
        ]
    if not line.verb or (line.verb == "help" and not line.arguments):
        return _commands(last)
    argument = line.next_positional()
    return _values(line, argument, last) if argument else []


def _commands(begun: str) -> list[Offer]:
    """The commands that begin with `begun`, with descriptions; imports only the modules of these commands."""
    found = [(verb, command_named(verb)) for verb in names() if verb.startswith(begun)]
    return [(verb, command.help.removesuffix(".")) for verb, command in found if command]


class _CommandLine:
    """The words before the one to complete, parsed: the command, its options, and the number of its arguments.

    `awaiting` is the option whose value is the word to complete, or None.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.verb = ""
        self.command: Command | None = None
        self.options = by_spelling((*COMMON, VERSION_OPTION, HELP_OPTION))
        self.values: dict[str, list[str]] = {}
        self.arguments = 0
        self.awaiting: Option | None = None
        for word in map(_unquoted, words):
            self._parse_word(word)

    def _parse_word(self, word: str) -> None:
        if self.awaiting:
            self.values.setdefault(self.awaiting.key, []).append(word)
            self.awaiting = None
        elif word.startswith("-"):
            option, _, value = split_option(word, self.options)
            if option and value is not None:
                self.values.setdefault(option.key, []).append(value)
            elif option and option.takes_value:
                self.awaiting = option
        elif self.verb:
            self.arguments += 1
        else:
            self.verb, self.command = word, command_named(word)
            if self.command:
                self.options = by_spelling((*self.command.options, HELP_OPTION))

    def next_positional(self) -> Option | None:
        declared = self.command.arguments if self.command else []
        if self.arguments < len(declared):
            return declared[self.arguments]
        return declared[-1] if declared and declared[-1].kind == "list" else None


def _unquoted(word: str) -> str:
    """The word as the command would receive it; bash and zsh pass it as typed."""
    try:
        parts = shlex.split(word)
    except ValueError:
        return word
    return parts[0] if len(parts) == 1 else word


def _values(line: _CommandLine, option: Option, begun: str) -> list[Offer]:
    if option.completes in ("files", "directories"):
        return [(f":{option.completes}", "")]
    offers: Iterable[Offer] = ((word, "") for word in option.words)
    if option.key == "output" and "name" in option.words and line.command:
        head = "".join(begun.rpartition(",")[:2])  # comma-separated fields
        forms = () if head else option.words
        offers = ((head + word, "") for word in dict.fromkeys((*forms, *line.command.fields)))
    elif option.completes:
        offers = _pools() if option.completes == "pools" else _pool_values(line, option.completes, begun)
    return [(word, meaning) for word, meaning in offers if word.startswith(begun)]


def _pool_values(line: _CommandLine, kind: str, begun: str) -> Iterable[Offer]:
    """Completions of this `kind` from the pool that -c or --pool names; a `~` in the path of -c is expanded here."""
    files = [os.path.expanduser(path) for path in line.values.get("config", [])]
    named = line.values.get("pool", [None])[-1]
    pool = find_pool(CommandRequest("list", {"config": files, "pool": named}), missing_ok=True)
    if kind == "backends":
        actions = () if line.arguments else BACKEND_ACTIONS
        return [(word, "") for word in (*actions, *(each["host"] for each in _ask_pool(pool, "hosts") or ()))]
    servers = _ask_pool(pool, "list")
    if servers is None:
        servers = list(_servers_in_files(pool.files))
    if kind == "tags":
        return [(tag, "") for tag in sorted({tag for each in servers for tag in each["tags"]})]
    offers = [(each["name"], each["state"]) for each in servers]
    if kind == "targets" and begun:
        offers += [(each["bind"], each["name"]) for each in servers]
    return offers


def _ask_pool(pool: PoolRef, verb: str) -> list[Table] | None:
    """The items in a running pool's answer to this verb; None if it does not answer within ANSWER_SECONDS."""
    try:
        document = Client(pool.socket, silence_seconds=ANSWER_SECONDS).call(verb, timeout=0.0)
    except ControlError:
        return None
    return list(document["items"])


def _servers_in_files(paths: Sequence[str]) -> Iterator[Table]:
    """Yield each server in the files as a table of name, bind, tags and an empty `state`. Nothing is validated."""
    from poolctl.config import read_documents

    for document in read_documents([*paths])[0]:
        tables = document.data if isinstance(document.data, list) else document.data.get("server", [])
        for each in [table for table in tables if isinstance(table, dict)]:
            texts = {key: str(each.get(key) or "") for key in ("name", "bind")}
            yield {**texts, "state": "", "tags": [*map(str, each.get("tags") or ())]}


def _pools() -> list[Offer]:
    roots = [root for root in runtime_root_candidates(os.environ) if os.path.isdir(root)]
    found = {entry[1:] for root in roots for entry in os.listdir(root) if entry.startswith("@")}
    return [(name, "") for name in sorted(found)]
