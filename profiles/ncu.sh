#!/usr/bin/env bash
# Profile this project's kernels with Nsight Compute in the steps that --profile captures. The report, and a CSV
# for `python -m profiles.roofline`, go into the run folder.
#   profiles/ncu.sh [--dry-run] [--range NAME | --kernel REGEX] ditflow transfer|inject ... --profile steps=1
#   --range kernel/motion_flow_loss   all kernels in a range of ditflow/profiling/ranges.py, libraries' included
#   --kernel motion_flow_forward      kernels by name; default: every Triton kernel of the project
set -euo pipefail
source "$(dirname "$0")/nsight.sh"

dry_run= range= kernel='^(motion_flow|qk_norm_rope)_'
while [[ ${1-} == --* ]]; do
    case $1 in
        --dry-run) dry_run=1; shift ;;
        --range | --kernel)
            [[ -n ${2-} ]] || fail "$1: nothing given; give a range such as block/20, or a kernel's name"
            if [[ $1 == --range ]]; then range=$2; else kernel=$2; fi
            shift 2
            ;;
        *) fail "$1: unknown; accepted: --dry-run, --range NAME, --kernel REGEX, then the command" ;;
    esac
done
check_command "$@"

if [[ -n $range ]]; then
    # escaped: a plain slash separates two ranges
    chosen=(--nvtx --nvtx-include "ditflow@${range//\//\\/}/")
else
    chosen=(--kernel-name-base function --kernel-name "regex:$kernel")
fi
sections=(
    SpeedOfLight SpeedOfLight_RooflineChart ComputeWorkloadAnalysis MemoryWorkloadAnalysis
    SchedulerStats WarpStateStats Occupancy LaunchStats
)
instruction=smsp__sass_thread_inst_executed_op
metrics=(  # what profiles/roofline.py reads
    gpu__time_duration.sum dram__bytes_read.sum dram__bytes_write.sum
    "$instruction"_{fadd,fmul,ffma,hadd,hmul,hfma}_pred_on.sum
    sm__ops_path_tensor_src_{bf16,fp16}_dst_fp32.sum
    dram__bytes.sum.peak_sustained dram__cycles_elapsed.avg.per_second
)
reports=${TMPDIR:-/tmp}/ditflow-ncu.$$
watch=(
    env DITFLOW_PROFILER=nsight
    ncu --target-processes all --profile-from-start off "${chosen[@]}"
    "${sections[@]/#/--section=}" --metrics "$(IFS=,; echo "${metrics[*]}")" --export "$reports/ncu"
    "$@"
)
export=(ncu --import "$reports/ncu.ncu-rep" --page raw --csv --print-units base)
if [[ -n $dry_run ]]; then
    show "${watch[@]}"
    echo "$(show "${export[@]}")>$reports/ncu.csv"
    exit
fi
check_tool ncu "Nsight Compute"
run_watched "$reports" "${watch[@]}"
"${export[@]}" >"$reports/ncu.csv"
keep_reports "$reports"
