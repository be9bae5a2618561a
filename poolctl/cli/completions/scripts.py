"""The completion scripts for shells; each calls `poolctl __complete` for every word (see candidates.py)."""

from __future__ import annotations

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
