# What nsys.sh and ncu.sh have in common; sourced by them.

fail() {  # LINE: print it and stop
    echo "${0##*/}: $1" >&2
    exit 2
}

check_command() {  # WORD...: a ditflow command that says where the profiler starts and stops
    [[ $# -gt 0 ]] || fail "no command given; give ditflow transfer or inject with --profile steps=2"
    [[ " $* " == *" --profile"[\ =]* ]] || fail "the command has no --profile: add --profile steps=2"
}

check_tool() {  # TOOL, WHAT: stop where it is not installed
    command -v "$1" >/dev/null || fail "$1 is not installed: it comes with $2 (developer.nvidia.com)"
}

show() {  # WORD...: a command as it could be typed
    printf '%q ' "$@"
    echo
}

run_watched() {  # FOLDER, WORD...: run, the words of standard output kept in FOLDER
    mkdir -p "$1"
    "${@:2}" | tee "$1/stdout"
}

keep_reports() {  # FOLDER: move what the profiler left there into the run folder that the command named
    local run=
    while IFS= read -r line; do
        if [[ -f $line/run.json ]]; then run=$line; fi
    done <"$1/stdout"
    [[ -n $run ]] || fail "the command named no finished run; the reports are in $1"
    rm "$1/stdout"
    mkdir -p "$run/profile"
    mv -n "$1"/* "$run/profile/"
    rmdir "$1"
    echo "profile: $run/profile"
}
