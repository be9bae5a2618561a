# Completion of poolctl for bash. Made by: poolctl completion bash
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
