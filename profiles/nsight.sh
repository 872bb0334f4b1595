# Functions shared by nsys.sh and ncu.sh, which source this file.

fail() {  # LINE: print it and stop
    echo "${0##*/}: $1" >&2
    exit 2
}

check_command() {  # WORD...: require a command with --profile, which starts and stops the profiler
    [[ $# -gt 0 ]] || fail "no command given; give ditflow transfer or inject with --profile steps=2"
    [[ " $* " == *" --profile"[\ =]* ]] || fail "the command has no --profile: add --profile steps=2"
}

check_tool() {  # TOOL, PRODUCT: stop if the tool is not installed
    command -v "$1" >/dev/null || fail "$1 is not installed: it comes with $2 (developer.nvidia.com)"
}

show() {  # WORD...: print a command, quoted for a shell
    printf '%q ' "$@"
    echo
}

run_watched() {  # FOLDER, WORD...: run a command and copy its standard output to FOLDER/stdout
    mkdir -p "$1"
    "${@:2}" | tee "$1/stdout"
}

keep_reports() {  # FOLDER: move the profiler's reports to the run folder that the command printed
    local run=
    while IFS= read -r line; do
        if [[ -f $line/run.json ]]; then run=$line; fi
    done <"$1/stdout"
    [[ -n $run ]] || fail "the command printed no finished run folder; the reports are in $1"
    rm "$1/stdout"
    mkdir -p "$run/profile"
    mv -n "$1"/* "$run/profile/"
    rmdir "$1"
    echo "profile: $run/profile"
}
