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
                if [[ $verb == @(import|run|walk) ]]; then # from here on it is the user's own command
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
        events:-o | logs:-o | events:--output | logs:--output) _poolctl_words 'table wide json jsonl'; return ;;
        register:-o | unregister:-o | register:--output | unregister:--output) _poolctl_fields 'table wide json jsonl name' 'name url state why since weight ttl_seconds left_seconds latency_seconds probe'; return ;;
        backends:-o | backends:--output) _poolctl_fields 'table wide json jsonl name' 'backend host routes state since until available health why breaker connections in_flight waiting requests errors'; return ;;
        config:-o | config:--output) _poolctl_fields 'toml table wide json jsonl name' 'name bind expose state ready health pids workers uptime_seconds restarts tags uptime'; return ;;
        export:-o | export:--output) _poolctl_fields 'json jsonl name' 'name text'; return ;;
        health:-o | health:--output) _poolctl_fields 'table wide json jsonl name' 'name kind status uptime_seconds latency_seconds detail'; return ;;
        import:-o | import:--output) _poolctl_files -f; return ;;
        list:-o | list:--output) _poolctl_fields 'table wide json jsonl name' 'name bind expose state ready health pids workers uptime_seconds restarts tags uptime cpu memory'; return ;;
        rollout:-o | rollout:--output) _poolctl_fields 'table wide json jsonl name' 'name state reason what generation share_asked share for_seconds elapsed_seconds min_requests abort_on canary before'; return ;;
        routes:-o | routes:--output) _poolctl_fields 'table wide json jsonl name' 'alias host path to policy mode way why provider state requests passed proxied refused waiting errors p50_seconds p99_seconds registrations machines matched'; return ;;
        stacks:-o | stacks:--output) _poolctl_fields 'table wide json jsonl name' 'name worker pid source problem place'; return ;;
        top:-o | top:--output) _poolctl_words 'json'; return ;;
        wait:--for) _poolctl_words 'ready stopped healthy running disabled completed sleeping starting draining stopping backoff failed'; return ;;
        *:-c | *:--config | *:-f | *:--file) _poolctl_files -f; return ;;
        *:--pool) _poolctl_ask pools; return ;;
        *:--bind | *:--app | *:--command | *:--set | *:--timeout | *:--for | *:--name | *:--expose | *:-n | *:--lines | *:--since | *:--kind | *:--listen | *:--regex | *:--tail | *:--until | *:--grep | *:--to | *:--ttl | *:--weight | *:--host | *:--path | *:--probe | *:--canary | *:--promote-after | *:--abort-on | *:--min-requests | *:--header | *:--log-format | *:--stop-timeout | *:--frames | *:--interval | *:-j | *:--jobs) :; return ;;
        *:-o | *:--output) _poolctl_fields 'table wide json jsonl name' 'name bind expose state ready health pids workers uptime_seconds restarts tags uptime'; return ;;
        *:--tag) _poolctl_ask tags; return ;;
        *:--state) _poolctl_words 'disabled stopped completed sleeping starting running draining stopping backoff failed'; return ;;
        *:--health) _poolctl_words 'unknown ok warn ko'; return ;;
        *:--directory) _poolctl_files -d; return ;;
        *:--target) _poolctl_words 'name bind expose'; return ;;
        *:--depth) _poolctl_words 'full summary simple'; return ;;
        *:--field) _poolctl_words 'name bind expose state ready health pids workers uptime_seconds restarts tags uptime'; return ;;
        *:--level) _poolctl_words 'trace debug info warning error critical'; return ;;
        *:--method) _poolctl_words 'GET HEAD POST PUT PATCH DELETE OPTIONS'; return ;;
        *:--sort) _poolctl_words 'problems name state health requests errors latency memory cpu uptime restarts file waiting'; return ;;
    esac
    case $verb in
        '')
            if [[ $cur == -* ]]; then
                _poolctl_words '-c --config --pool -q --quiet -v --verbose --version -h --help'
            else
                _poolctl_words 'add backends completion config dashboard disable doctor drain enable events export filter health import init list logs metrics notify pools register reload remove restart rollout routes run scale schema show stacks start status stop top undrain unregister upgrade validate version wait walk'
            fi
            ;;
        add)
            if [[ $cur == -* ]]; then
                _poolctl_words '--bind --app --command --set -f --file -o --output --timeout --no-wait --save --dry-run -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        backends)
            if [[ $cur == -* ]]; then
                _poolctl_words '--for -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask backends
            fi
            ;;
        completion)
            if [[ $cur == -* ]]; then
                _poolctl_words '--install -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_words 'bash zsh fish'
            fi
            ;;
        config)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --reveal --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        dashboard)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        disable)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --save --dry-run --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        doctor)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        drain)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --save --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        enable)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --save --dry-run --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        events)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -f --follow -n --lines --since --kind --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        export)
            if [[ $cur == -* ]]; then
                _poolctl_words '--directory -o --output --user --listen -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_words 'systemd haproxy'
            fi
            ;;
        filter)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --regex --target --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_words 'name bind expose'
            fi
            ;;
        health)
            if [[ $cur == -* ]]; then
                _poolctl_words '--depth --routes -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        import)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --force -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_files -f
            fi
            ;;
        init)
            if [[ $cur == -* ]]; then
                _poolctl_words '--app --gateway --force -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_files -d
            fi
            ;;
        list)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --field --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        logs)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -f --follow -n --lines --tail --since --until --grep --level -t --timestamps --no-timestamps --raw --gateway --reopen --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        metrics)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --openmetrics --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        notify)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        pools)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        register)
            if [[ $cur == -* ]]; then
                _poolctl_words '--to --ttl --weight --host --path --probe -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        reload)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --dry-run --watch --env --allow-expired -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        remove)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --save --dry-run --no-deps --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        restart)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --no-deps --env --allow-expired --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        rollout)
            if [[ $cur == -* ]]; then
                _poolctl_words '--canary --promote-after --abort-on --min-requests --pause --allow-larger-share --no-wait -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        routes)
            if [[ $cur == -* ]]; then
                _poolctl_words '--method --header -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_words 'explain'
            fi
            ;;
        run)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-deps --watch --no-access-log --debug --log-format --stop-timeout --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        scale)
            if [[ $cur == -* ]]; then
                _poolctl_words '--auto -o --output --timeout --no-wait --save --dry-run --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        schema)
            if [[ $cur == -* ]]; then
                _poolctl_words '-c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        show)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --full --reveal --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        stacks)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        start)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --no-deps --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        status)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --healthcheck --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        stop)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --no-deps --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        top)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -n --frames --once --interval --sort --routes --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        undrain)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --save --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        unregister)
            if [[ $cur == -* ]]; then
                _poolctl_words '--to -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        upgrade)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --restart --allow-same-version -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        validate)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --import --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        version)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        wait)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --for --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
        walk)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -j --jobs --fail-fast --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask targets
            fi
            ;;
    esac
}

complete -F _poolctl poolctl
