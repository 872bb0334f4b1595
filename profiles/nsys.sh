#!/usr/bin/env bash
# Record the steps that --profile captures with Nsight Systems. The report goes into the run folder.
#   profiles/nsys.sh [--dry-run] ditflow transfer|inject ... --profile steps=2
set -euo pipefail
source "$(dirname "$0")/nsight.sh"

dry_run=
if [[ ${1-} == --dry-run ]]; then
    dry_run=1
    shift
fi
check_command "$@"

reports=${TMPDIR:-/tmp}/ditflow-nsys.$$
watch=(
    env DITFLOW_PROFILER=nsight
    nsys profile --trace=cuda,nvtx,cublas,cudnn --sample=none --cpuctxsw=none --cuda-memory-usage=true
    --capture-range=cudaProfilerApi --capture-range-end=stop --output "$reports/nsys"
    "$@"
)
if [[ -n $dry_run ]]; then
    show "${watch[@]}"
    exit
fi
check_tool nsys "Nsight Systems"
run_watched "$reports" "${watch[@]}"
keep_reports "$reports"
