"""The batch script of a Slurm job."""

import shlex
from collections.abc import Mapping, Sequence

from launch.errors import InputError

# What Slurm does, from its sources and manuals of August 2026 (26.05), and as observed with 22.05:
# * `--signal=TERM@SECONDS` (without `B:`), preemption with a grace time, and `scancel
# --signal=TERM`   send SIGTERM to the tasks themselves, not to this script. srun must not forward
# it: it turns   SIGTERM into SIGKILL. * Slurm sends SIGTERM to this script when it ends the job
# (scancel, the time limit, the end of the   grace time), and to the tasks as well; SIGKILL follows
# after KillWait, 30 seconds by default. By   then the job is COMPLETING. If it is still RUNNING,
# only this script was signalled   (`scancel --batch`). * `scontrol requeue` would also restart a
# job that was cancelled; so this script must know better. * srun's exit code is the highest of all
# tasks', or the highest signal if one was killed: 75 hides   2. Each task's code is in a line of
# its own on stderr. * In an array, the number of the last task is also that of the whole array.
_BODY = r"""
say() {
    printf 'slurm: %s\n' "$1" >&2
}

refuse() {
    printf 'error: %s\n' "$1" >&2
    printf '2\n' >>"$folder/$job.codes"
    exit 2
}

# Whether the same command can resume after this exit code.
goes_on() {
    case $1 in
    75 | 137 | 143) return 0 ;;
    *) return 1 ;;
    esac
}

if [[ -e $folder/$whole.stopped ]]; then
    say "this job was stopped"
    exit 0
fi
cd "$directory" ||
    refuse "$directory cannot be entered on $HOSTNAME: submit from a folder that all nodes see"
[[ -x ${task[0]} ]] ||
    refuse "${task[0]} is not on $HOSTNAME: install the project in a folder that all nodes see"
for name in "${variables[@]}"; do
    [[ -v $name ]] ||
        refuse "the variable $name has not come along: does the cluster drop the environment?"
done

told='' forwarded='' ending=''
on_sigterm() {
    told=1
    if [[ $(squeue --noheader --jobs="$job" --format=%T) != RUNNING ]]; then
        ending=1
    elif [[ ! $forwarded ]]; then
        # Once: a second one ends a process that is alone before it has saved.
        forwarded=1
        scancel --signal=TERM "$job"
    fi
}
trap on_sigterm TERM
srun --kill-on-bad-exit=1 --export=ALL --open-mode=append --output="$log" --error="$log" \
    "${step[@]}" "${task[@]}" 2>"$folder/$job.srun" &
srun=$!
wait "$srun"
code=$?
# A signal ends waiting, with a code of its own.
while [[ $told ]]; do
    told=''
    wait "$srun"
    code=$?
done
cat "$folder/$job.srun" >&2

if ((code)); then
    codes=$(sed -n 's/^srun: error: .*: Exited with exit code \([0-9]*\)$/\1/p' "$folder/$job.srun")
    # The task that has failed counts, not those that have lost it.
    first=''
    for each in $codes "$code"; do
        first=${first:-$each}
        goes_on "$each" || {
            first=$each
            break
        }
    done
    code=$first
fi
printf '%s\n' "$code" >>"$folder/$job.codes"

restarts=${SLURM_RESTART_COUNT:-0}
printf -v now '%(%s)T' -1
if ! goes_on "$code"; then
    say "exit code $code"
elif [[ -e $folder/$whole.stopped ]]; then
    say "exit code $code: stopped"
elif [[ $ending ]] && ((now + 5 < ${SLURM_JOB_END_TIME:-now + 6})); then
    say "exit code $code: Slurm has ended this job (scancel, preemption); not requeued from here"
elif ((restarts >= most)); then
    say "exit code $code after $restarts restarts, which is the limit (--restarts)"
else
    say "exit code $code: requeued, restart $((restarts + 1)) of at most $most"
    scontrol requeue "$job" || say "it could not be requeued: submit it again"
fi
exit "$code"
"""


def render(
    options: Sequence[str],
    values: Mapping[str, str],
    lists: Mapping[str, Sequence[str]],
    workers: int = 0,
) -> str:
    """The script.

    `options` are sbatch's. `values`: `folder` to write to, `directory` to run in, `most` restarts.
    `lists`: `step` (options of srun), `task` (the command), `variables` (names). With `workers`,
    each job of an array learns which worker it is. Raises `InputError` for a word that a script
    cannot hold.
    """
    # 1. A script has one command per line.
    for word in (*options, *values.values(), *(word for words in lists.values() for word in words)):
        if "\n" in word or "\0" in word:
            raise InputError(f"{word!r}: a word of a batch script cannot have a line break")
    # 2. Options, then variables, which the body reads.
    lines = ["#!/bin/bash", *(f"#SBATCH {_directive(option)}" for option in options), ""]
    lines += [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines += [f"{name}=({shlex.join(words)})" for name, words in lists.items()]
    if workers:
        lines.append('whole=$SLURM_ARRAY_JOB_ID job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"')
        lines.append(f'task+=(--worker="$SLURM_ARRAY_TASK_ID" --num_workers={workers})')
    else:
        lines.append("whole=$SLURM_JOB_ID job=$SLURM_JOB_ID")
    # srun replaces %t by the rank of a task; a percent sign of the folder is doubled.
    lines.append('log="${folder//%/%%}/$job-process-%t.log"')
    return "\n".join(lines) + "\n" + _BODY


def _directive(option: str) -> str:
    """An option for a `#SBATCH` line, where sbatch has quoting rules of its own."""
    if not any(letter in option for letter in " \t\"'\\#"):
        return option
    escaped = option.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
