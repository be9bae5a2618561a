# Completion of poolctl for bash. Made by: poolctl completion bash
# Load it with: source <(poolctl completion bash)

_poolctl_ask() { # servers, tags, hosts or pools of the pool that the line is about
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
                if [[ $verb == @(run|walk) ]]; then # from here on it is the user's own command
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
        events:-o | logs:-o | events:--output | logs:--output) _poolctl_words 'json jsonl'; return ;;
        config:-o | config:--output) _poolctl_words 'toml table wide json jsonl name'; return ;;
        export:-o | export:--output) _poolctl_words 'json jsonl name'; return ;;
        top:-o | top:--output) _poolctl_words 'json'; return ;;
        wait:--for) _poolctl_words 'ready stopped healthy running disabled sleeping starting draining stopping backoff failed'; return ;;
        *:-c | *:--config | *:-f | *:--file) _poolctl_files -f; return ;;
        *:--pool) _poolctl_ask pools; return ;;
        *:--bind | *:--app | *:--command | *:--set | *:--timeout | *:--name | *:--expose | *:-n | *:--lines | *:--since | *:--kind | *:--listen | *:--regex | *:--for | *:--tail | *:--until | *:--grep | *:--to | *:--ttl | *:--weight | *:--host | *:--path | *:--probe | *:--canary | *:--abort-on | *:--min-requests | *:--header | *:--log-format | *:--stop-timeout | *:--frames | *:--interval | *:-j | *:--jobs) :; return ;;
        *:-o | *:--output) _poolctl_words 'table wide json jsonl name'; return ;;
        *:--tag) _poolctl_ask tags; return ;;
        *:--state) _poolctl_words 'disabled stopped sleeping starting running draining stopping backoff failed'; return ;;
        *:--health) _poolctl_words 'unknown ok warn ko'; return ;;
        *:--directory) _poolctl_files -d; return ;;
        *:--target) _poolctl_words 'name bind expose'; return ;;
        *:--depth) _poolctl_words 'full summary simple'; return ;;
        *:--field) _poolctl_words 'name bind expose state ready health pids workers uptime_seconds restarts tags uptime'; return ;;
        *:--level) _poolctl_words 'trace debug info warning error critical'; return ;;
        *:--method) _poolctl_words 'GET HEAD POST PUT PATCH DELETE OPTIONS'; return ;;
        *:--sort) _poolctl_words 'name state health requests errors latency memory cpu uptime restarts file'; return ;;
    esac
    case $verb in
        '')
            if [[ $cur == -* ]]; then
                _poolctl_words '-c --config --pool -q --quiet -v --verbose --version -h --help'
            else
                _poolctl_words 'add completion config dashboard disable doctor drain enable events export filter health hosts init list logs metrics notify pools register reload remove restart rollout routes run scale schema show stacks start status stop top undrain unregister upgrade validate version wait walk'
            fi
            ;;
        add)
            if [[ $cur == -* ]]; then
                _poolctl_words '--bind --app --command --set -f --file -o --output --timeout --no-wait --save --dry-run -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        completion)
            if [[ $cur == -* ]]; then
                _poolctl_words '-c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_words 'bash zsh fish'
            fi
            ;;
        config)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --reveal --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
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
                _poolctl_ask servers
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
                _poolctl_ask servers
            fi
            ;;
        enable)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --save --dry-run --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        events)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -f --follow -n --lines --since --kind --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
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
                _poolctl_words '--depth -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        hosts)
            if [[ $cur == -* ]]; then
                _poolctl_words '--for -o --output -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask hosts
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
                _poolctl_ask servers
            fi
            ;;
        logs)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -f --follow -n --lines --tail --since --until --grep --level -t --timestamps --no-timestamps --raw --gateway --reopen --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        metrics)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --openmetrics --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
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
                _poolctl_words '-o --output --timeout --no-wait --dry-run --watch --env --force -c --config --pool -q --quiet -v --verbose -h --help'
            else
                :
            fi
            ;;
        remove)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --save --dry-run --no-deps --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        restart)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --no-deps --env --force --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        rollout)
            if [[ $cur == -* ]]; then
                _poolctl_words '--canary --for --abort-on --min-requests --pause --force --no-wait -o --output -c --config --pool -q --quiet -v --verbose -h --help'
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
                _poolctl_ask servers
            fi
            ;;
        scale)
            if [[ $cur == -* ]]; then
                _poolctl_words '--auto -o --output --timeout --no-wait --save --dry-run --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
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
                _poolctl_ask servers
            fi
            ;;
        stacks)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        start)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --no-deps --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        status)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --healthcheck --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        stop)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --no-wait --no-deps --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        top)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -n --frames --once --interval --sort --routes --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
        undrain)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output --timeout --save --name --bind --expose --tag --state --health --not --allow-empty --all -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
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
                _poolctl_words '-o --output --timeout --restart --force -c --config --pool -q --quiet -v --verbose -h --help'
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
                _poolctl_ask servers
            fi
            ;;
        walk)
            if [[ $cur == -* ]]; then
                _poolctl_words '-o --output -j --jobs --fail-fast --name --bind --expose --tag --state --health --not --allow-empty -c --config --pool -q --quiet -v --verbose -h --help'
            else
                _poolctl_ask servers
            fi
            ;;
    esac
}

complete -F _poolctl poolctl
