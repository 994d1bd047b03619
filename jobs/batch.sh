# shellcheck shell=bash
# Functions that a batch script calls before its ranks start and after they have ended. pararun and the jobs of
# `sage submit` source this file. It runs on the job's first node, which is rank 0's.
#
#     sage_find_run FILE LOCK
#                           wait until `sage submit` has written the job's pickle; end the job if it never will
#     sage_set_rendezvous [FOLDER]
#                           create the job's folder in FOLDER, else in the folder of the submission; set and
#                           export hostip and port, the ranks' rendezvous
#     sage_forget_other_job unset variables left over from the job in which this one was submitted
#     sage_wait PID         wait for srun and forward signals to its ranks; returns srun's exit status
#     sage_finish STATUS    requeue the job if that may help, and exit with the run's status
#
# Exit statuses of `sage run`: 0 finished; 75 stopped by a signal, checkpoint written; 2 an error that would happen
# again (an invalid setting, missing data, a run that diverges); any other status is a failure that may not happen
# again, as a killed rank or a lost node.
#
# The job's folder, .sage-job-JOBID, is visible on all nodes and readable and writable by its owner only. It contains
#
#     failures              the number of the job's failures: digits only, synced before the job is requeued
#     outcome-N             status and reason of the run's Nth start, by the first rank that wrote it: srun returns
#                           the highest status of all ranks, and 137 for ranks that it killed after a failure
#
# No decision depends on a reason's text: it is cut, cleaned of control characters and printed, never parsed.

# SLURM signals this script along with the ranks; the script has to run until the ranks have ended.
trap : TERM USR1 USR2

SAGE_LONGEST_REASON=1500 # bytes

sage_set_rendezvous() {
    sage_own_folder "${1:-${SLURM_SUBMIT_DIR:-.}}/.sage-job-${SLURM_JOB_ID:-0}"
    # The rendezvous of another job, inside which this one was submitted.
    if [[ -n ${SAGE_MEETING:-} && $SAGE_MEETING == "${hostip:-} ${port:-}" ]]; then
        unset hostip port
    fi
    hostip=${hostip:-$(sage_first_address)}
    if [[ -z $hostip ]]; then
        sage_refuse "cannot determine the address of the first node of '$SLURM_JOB_NODELIST': set hostip"
    fi
    if [[ -z ${port:-} ]]; then
        # A different port after a requeue, so that a leftover rank of the previous start cannot connect.
        port=$((20000 + (SLURM_JOB_ID + 1009 * ${SLURM_RESTART_COUNT:-0}) % 10000))
        while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
            port=$((port + 1))
        done
    fi
    SAGE_MEETING="$hostip $port"
    # A secret that only this job's ranks have, a new one for each start.
    SAGE_SECRET=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
    # SLURM_EXPORT_ENV=ALL: with sbatch --export=NONE, srun would not pass these to its tasks.
    export hostip port SAGE_MEETING SAGE_SECRET SLURM_EXPORT_ENV=ALL
    unset rank world_size # srun numbers its tasks itself
}

# `sage submit` holds the lock while it submits. If nobody holds it, the file will never be written.
sage_find_run() {
    local second free=0
    for ((second = 0; second < 60 && free < 5; second++)); do
        if [[ -e $1 ]]; then
            return
        fi
        if [[ -e $2 ]] && flock --nonblock -- "$2" true 2>/dev/null; then
            free=$((free + 1)) # on a shared file system the file may become visible some seconds late
        fi
        sleep 1
    done
    if [[ ! -e $1 ]]; then
        sage_refuse "job $SLURM_JOB_ID has no run, because its \`sage submit\` was killed: submit again"
    fi
}

sage_refuse() {
    printf 'sage: %s\n' "$1" >&2
    exit 2
}

# Create the job's folder, or use the one that an earlier start of this job has created.
sage_own_folder() {
    sage_folder=$1
    local theirs="$1 is not a folder that only you can access: remove it, or submit from another folder"
    if [[ ! ${max_requeues:-3} =~ ^[0-9]{1,6}$ ]]; then
        sage_refuse "max_requeues is '${max_requeues:0:40}'; allowed is a whole number from 0 to 999999"
    fi
    if ! mkdir -m 700 -- "$sage_folder" 2>/dev/null; then
        if [[ ! -e $sage_folder && ! -L $sage_folder ]]; then
            sage_refuse "cannot create the job's folder $sage_folder: submit from a folder where you may write"
        elif [[ -L $sage_folder || ! -d $sage_folder || ! -O $sage_folder ]]; then
            sage_refuse "$theirs"
        elif (($(stat -c "8#%a & 8#77" -- "$sage_folder"))); then
            # Others could have written to it, so its content is not used.
            { rm -rf -- "$sage_folder" && mkdir -m 700 -- "$sage_folder"; } 2>/dev/null || sage_refuse "$theirs"
        fi
    fi
    if [[ ${SLURM_RESTART_COUNT:-0} -eq 0 ]]; then # an existing file is left over from a job with the same id
        rm -f -- "$sage_folder/failures" 2>/dev/null || :
        sage_write_failures 0 || : # written again before a requeue
    fi
    export SAGE_OUTCOME="$sage_folder/outcome-${SLURM_RESTART_COUNT:-0}"
    rm -rf -- "$SAGE_OUTCOME" 2>/dev/null || :
    if [[ -e $SAGE_OUTCOME || -L $SAGE_OUTCOME ]]; then
        sage_refuse "cannot remove $SAGE_OUTCOME, which is left over from an earlier start: remove it"
    fi
}

# An address of the first node that the other nodes can reach.
sage_first_address() {
    if [[ ${SLURM_JOB_NUM_NODES:-1} -eq 1 ]]; then
        echo 127.0.0.1
        return
    fi
    local name node_addresses address
    name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    node_addresses=$(scontrol --oneliner show node "$SLURM_JOB_NODELIST" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    # A node often resolves its own name to a loopback address, which other nodes cannot use to reach it.
    for address in $(sage_resolve "$name") $(sage_resolve "${node_addresses%%$'\n'*}"); do
        if ! sage_is_local "$address"; then
            echo "$address"
            return
        fi
    done
    for address in $node_addresses; do
        if ! sage_is_local "$address"; then
            hostname -I | tr ' ' '\n' | sed -n 1p
            return
        fi
    done
    echo 127.0.0.1 # SLURM reaches all nodes by loopback addresses: they are one machine
}

sage_resolve() {
    getent ahosts "$1" | awk '!seen[$1]++ { print $1 }'
}

sage_is_local() {
    [[ $1 =~ ^(127\.|::1$|fe80:|localhost) ]]
}

sage_wait() {
    local status=0
    # On SIGTERM srun would kill the ranks at once. SIGUSR1 has the same effect on the ranks as SIGTERM.
    # shellcheck disable=SC2064
    trap "kill -USR1 $1 2>/dev/null || :" TERM USR1
    # shellcheck disable=SC2064
    trap "kill -USR2 $1 2>/dev/null || :" USR2
    while kill -0 "$1" 2>/dev/null; do # a signal interrupts `wait`, but does not end srun
        wait "$1" || :
    done
    wait "$1" || status=$?
    trap : TERM USR1 USR2
    return "$status"
}

sage_finish() {
    local status=$1 reason="" recorded="" most=$((10#${max_requeues:-3}))
    if [[ -f $SAGE_OUTCOME && ! -L $SAGE_OUTCOME && -O $SAGE_OUTCOME ]]; then
        IFS=' ' read -r recorded reason < <(head -c "$SAGE_LONGEST_REASON" -- "$SAGE_OUTCOME" | sage_clean) || :
        if [[ $recorded =~ ^[0-9]{1,3}$ && $((10#$recorded)) -le 255 ]]; then
            status=$((10#$recorded))
        else
            reason=""
        fi
    fi
    case $status in
    0) ;;
    2) reason="not requeued: ${reason:-an invalid setting}" ;;
    75) sage_requeue "stopped, checkpoint written" && exit 75 ;;
    *)
        reason=${reason:-a rank exited with status $status}
        local failures
        failures=$(($(sage_failures) + 1))
        if [[ $failures -gt $most ]]; then
            reason="failed again after $most requeues: $reason"
        elif ! sage_write_failures "$failures"; then
            reason="not requeued, because $sage_folder/failures cannot be written: $reason"
        elif sage_requeue "failure $failures of at most $most: $reason"; then
            exit "$status"
        fi
        ;;
    esac
    if [[ $status -ne 0 ]]; then
        printf 'sage: job %s ended with status %s%s\n' "$SLURM_JOB_ID" "$status" "${reason:+, $reason}" >&2
    fi
    rm -rf -- "$sage_folder" 2>/dev/null || :
    exit "$status"
}

# Make stdin one line without control characters: ASCII's, and in UTF-8 those from U+0080 to U+009F.
sage_clean() {
    LC_ALL=C tr '\000-\037\177' ' ' | LC_ALL=C sed $'s/\xc2[\x80-\x9f]/ /g'
    echo
}

# Unset the numbers of tasks and processors of another job, inside which this one was submitted: sbatch passes its
# variables on, and srun would use them. They are recognised by SLURM's own variables for this job's nodes.
sage_forget_other_job() {
    local tasks=0 each cpus
    for each in $(tr , " " <<<"${SLURM_TASKS_PER_NODE:-}"); do # as in 2(x3),1
        if [[ $each =~ ^([0-9]+)(\(x([0-9]+)\))?$ ]]; then
            tasks=$((tasks + BASH_REMATCH[1] * ${BASH_REMATCH[3]:-1}))
        fi
    done
    if [[ $tasks -gt 0 && -n ${SLURM_NTASKS:-} && $SLURM_NTASKS != "$tasks" ]]; then
        unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE
    fi
    cpus=$(sage_job | LC_ALL=C grep -oE -m 1 ' CPUs/Task=[0-9]+ ' | tr -cd '0-9') || :
    if [[ -n $cpus && -n ${SLURM_CPUS_PER_TASK:-} && $SLURM_CPUS_PER_TASK != "$cpus" ]]; then
        unset SLURM_CPUS_PER_TASK
    fi
}

# The number of earlier failures of the job. If it is not recorded, the number of SLURM's restarts.
sage_failures() {
    local restarts found=""
    restarts=$(sage_restarts)
    if [[ -f $sage_folder/failures && ! -L $sage_folder/failures && -O $sage_folder/failures ]]; then
        found=$(head -c 20 -- "$sage_folder/failures" 2>/dev/null | LC_ALL=C tr -d '\000') || :
    fi
    # If SLURM_RESTART_COUNT is too low, the recorded count may have been reset at this start.
    if [[ ${SLURM_RESTART_COUNT:-0} -eq $restarts && $found =~ ^[0-9]{1,6}$ ]]; then
        echo $((10#$found))
    else
        echo "$restarts"
    fi
}

# The number of times SLURM has restarted the job; the highest number if sources differ.
sage_restarts() {
    local most=${SLURM_RESTART_COUNT:-0} each
    for each in $(sage_job | LC_ALL=C grep -oE ' Restarts=[0-9]{1,9} ' | tr -cd '0-9\n'); do
        if [[ $((10#$each)) -gt $most ]]; then
            most=$((10#$each))
        fi
    done
    echo "$most"
}

# Write the count atomically and sync it to disk; returns an error if either may have failed.
sage_write_failures() {
    local draft="$sage_folder/failures.$$"
    { echo "$1" >"$draft" && sync -- "$draft" && mv -fT -- "$draft" "$sage_folder/failures" &&
        sync -- "$sage_folder" && [[ $(cat -- "$sage_folder/failures") == "$1" ]]; } 2>/dev/null
}

# scontrol's line of this job's id, which may also be the id of a whole array.
sage_job() {
    { scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null || :; } |
        LC_ALL=C grep -m 1 "^JobId=$SLURM_JOB_ID " || :
}

# The job's name for scontrol. An array task is named by array id and task id, because one task's job id is also the
# array's id. SLURM_ARRAY_TASK_ID is not used: it may be left over from an array inside which the job was submitted.
sage_scontrol_name() {
    if [[ $1 =~ ^JobId=[0-9]+\ ArrayJobId=([0-9]+)\ ArrayTaskId=([0-9]+)\  ]]; then
        echo "${BASH_REMATCH[1]}_${BASH_REMATCH[2]}"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# Requeue the job, unless it is no longer running: it was cancelled, or SLURM is requeueing it.
sage_requeue() {
    local found
    found=$(sage_job)
    if [[ $found != *" JobState=RUNNING "* ]]; then
        printf 'sage: job %s: %s; SLURM is already ending the job\n' "$SLURM_JOB_ID" "$1" >&2
        return 0
    fi
    # Printed first, because SLURM may kill this script as soon as it receives the request.
    printf 'sage: job %s: %s; requeued\n' "$SLURM_JOB_ID" "$1" >&2
    if ! scontrol requeue "$(sage_scontrol_name "$found")"; then
        printf 'sage: job %s: SLURM refused the requeue; submit the job again to resume\n' "$SLURM_JOB_ID" >&2
        return 1
    fi
}
