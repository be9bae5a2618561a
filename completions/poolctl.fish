# Completion of poolctl for fish. Made by: poolctl completion fish
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
