# shellcheck shell=bash
# What a batch script does before its ranks start and after they have ended. pararun and the jobs of `sage submit`
# source it; it runs on the job's first node, where rank 0 will be.
#
#     sage_find_cell FILE LOCK
#                        wait until `sage submit` has put the job's cell in its place, and end where it never will
#     sage_meet [FOLDER] make the job's own folder, in FOLDER, else in the folder of the submission; set and export
#                        hostip and port: where the ranks meet
#     sage_forget_other_job
#                        unset what is left of the job from which this one was submitted
#     sage_await PID     wait for srun, handing signals on to its ranks; returns its exit status
#     sage_end STATUS    leave with the status of the run, after having the job requeued where that helps
#
# What `sage run` leaves with: 0 finished, 75 stopped by a signal and saved, 2 hopeless (a wrong setting, missing
# data, a run that diverges), any other status a failure that may not happen again: a killed rank, a lost node.
#
# The job's own folder, .sage-job-JOBID, can be read and written by its owner alone, and all nodes see it. It holds
#
#     failures           how often the job has failed: digits alone, synced before the job is requeued
#     outcome-N          status and reason of the run's Nth start, from the first rank that had one to tell: srun
#                        returns the highest status of all ranks, and 137 for those it killed because one failed
#
# No decision depends on a message: it is cut, cleaned of control characters and printed, never read back.

# SLURM signals the script along with its ranks; it has to outlive them.
trap : TERM USR1 USR2

SAGE_LONGEST_REASON=1500 # bytes

sage_meet() {
    sage_own_folder "${1:-${SLURM_SUBMIT_DIR:-.}}/.sage-job-${SLURM_JOB_ID:-0}"
    # What another job's ranks were told: this one was submitted from there.
    if [[ -n ${SAGE_MEETING:-} && $SAGE_MEETING == "${hostip:-} ${port:-}" ]]; then
        unset hostip port
    fi
    hostip=${hostip:-$(sage_head)}
    if [[ -z $hostip ]]; then
        sage_refuse "cannot tell the address of the first node of '$SLURM_JOB_NODELIST': set hostip"
    fi
    if [[ -z ${port:-} ]]; then
        # Another one after a requeue, so that a rank left over from before cannot join.
        port=$((20000 + (SLURM_JOB_ID + 1009 * ${SLURM_RESTART_COUNT:-0}) % 10000))
        while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
            port=$((port + 1))
        done
    fi
    SAGE_MEETING="$hostip $port"
    # What only this job's ranks know, another one for each start.
    SAGE_SECRET=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
    # Else srun would leave its tasks without these, where sbatch was told --export=NONE.
    export hostip port SAGE_MEETING SAGE_SECRET SLURM_EXPORT_ENV=ALL
    unset rank world_size # srun numbers its tasks itself
}

# `sage submit` holds the lock while it submits: where nobody does, the file will not come any more.
sage_find_cell() {
    local second free=0
    for ((second = 0; second < 60 && free < 5; second++)); do
        if [[ -e $1 ]]; then
            return
        fi
        if [[ -e $2 ]] && flock --nonblock -- "$2" true 2>/dev/null; then
            free=$((free + 1)) # a shared file system may show the file some seconds late
        fi
        sleep 1
    done
    if [[ ! -e $1 ]]; then
        sage_refuse "job $SLURM_JOB_ID has no cell, as the \`sage submit\` that submitted it was ended: submit again"
    fi
}

sage_refuse() {
    printf 'sage: %s\n' "$1" >&2
    exit 2
}

# Make the job's own folder, or take the one that an earlier start of this job has made.
sage_own_folder() {
    sage_folder=$1
    local theirs="$1 is not a folder of yours alone: remove it, or submit from another folder"
    if [[ ! ${max_requeues:-3} =~ ^[0-9]{1,6}$ ]]; then
        sage_refuse "max_requeues is '${max_requeues:0:40}'; allowed is a whole number from 0 to 999999"
    fi
    if ! mkdir -m 700 -- "$sage_folder" 2>/dev/null; then
        if [[ ! -e $sage_folder && ! -L $sage_folder ]]; then
            sage_refuse "cannot make the folder $sage_folder, which the job needs: submit from where you may write"
        elif [[ -L $sage_folder || ! -d $sage_folder || ! -O $sage_folder ]]; then
            sage_refuse "$theirs"
        elif (($(stat -c "8#%a & 8#77" -- "$sage_folder"))); then
            # What others could read or write cannot be trusted.
            { rm -rf -- "$sage_folder" && mkdir -m 700 -- "$sage_folder"; } 2>/dev/null || sage_refuse "$theirs"
        fi
    fi
    if [[ ${SLURM_RESTART_COUNT:-0} -eq 0 ]]; then # what is there was left by a job that had the same number
        rm -f -- "$sage_folder/failures" 2>/dev/null || :
        sage_write_failures 0 || : # tried again before a requeue
    fi
    export SAGE_OUTCOME="$sage_folder/outcome-${SLURM_RESTART_COUNT:-0}"
    rm -rf -- "$SAGE_OUTCOME" 2>/dev/null || :
    if [[ -e $SAGE_OUTCOME || -L $SAGE_OUTCOME ]]; then
        sage_refuse "cannot remove $SAGE_OUTCOME, which is not from this start of the job"
    fi
}

# An address of the first node that the other nodes can reach.
sage_head() {
    if [[ ${SLURM_JOB_NUM_NODES:-1} -eq 1 ]]; then
        echo 127.0.0.1
        return
    fi
    local name node_addresses address
    name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    node_addresses=$(scontrol --oneliner show node "$SLURM_JOB_NODELIST" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    # A node often knows itself by an address of loopback, where the others would find themselves.
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
    echo 127.0.0.1 # SLURM itself reaches all of these nodes here: they are one machine
}

sage_resolve() {
    getent ahosts "$1" | awk '!seen[$1]++ { print $1 }'
}

sage_is_local() {
    [[ $1 =~ ^(127\.|::1$|fe80:|localhost) ]]
}

sage_await() {
    local status=0
    # On SIGTERM srun would kill the ranks at once; they do the same on SIGUSR1.
    # shellcheck disable=SC2064
    trap "kill -USR1 $1 2>/dev/null || :" TERM USR1
    # shellcheck disable=SC2064
    trap "kill -USR2 $1 2>/dev/null || :" USR2
    while kill -0 "$1" 2>/dev/null; do # a signal ends `wait`, but not srun
        wait "$1" || :
    done
    wait "$1" || status=$?
    trap : TERM USR1 USR2
    return "$status"
}

sage_end() {
    local status=$1 reason="" told="" most=$((10#${max_requeues:-3}))
    if [[ -f $SAGE_OUTCOME && ! -L $SAGE_OUTCOME && -O $SAGE_OUTCOME ]]; then
        IFS=' ' read -r told reason < <(head -c "$SAGE_LONGEST_REASON" -- "$SAGE_OUTCOME" | sage_clean) || :
        if [[ $told =~ ^[0-9]{1,3}$ && $((10#$told)) -le 255 ]]; then
            status=$((10#$told))
        else
            reason=""
        fi
    fi
    case $status in
    0) ;;
    2) reason="hopeless: ${reason:-a wrong setting}" ;;
    75) sage_requeue "stopped and saved" && exit 75 ;;
    *)
        reason=${reason:-a rank left with status $status}
        local failures
        failures=$(($(sage_failures) + 1))
        if [[ $failures -gt $most ]]; then
            reason="failed again after $most requeues: $reason"
        elif ! sage_write_failures "$failures"; then
            reason="not requeued, as $sage_folder/failures cannot be written: $reason"
        elif sage_requeue "failure $failures of at most $most: $reason"; then
            exit "$status"
        fi
        ;;
    esac
    if [[ $status -ne 0 ]]; then
        printf 'sage: job %s ends with status %s%s\n' "$SLURM_JOB_ID" "$status" "${reason:+, $reason}" >&2
    fi
    rm -rf -- "$sage_folder" 2>/dev/null || :
    exit "$status"
}

# One line without control characters, neither ASCII's nor, as UTF-8 has them, those from 128 to 159.
sage_clean() {
    LC_ALL=C tr '\000-\037\177' ' ' | LC_ALL=C sed $'s/\xc2[\x80-\x9f]/ /g'
    echo
}

# Forget how many tasks and processors another job had, from which this one was submitted: sbatch hands its
# variables on, and srun would obey them. What SLURM itself set for this job's nodes tells them apart.
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

# How often the job has failed before. Where that is not on record, all of SLURM's restarts count.
sage_failures() {
    local restarts found=""
    restarts=$(sage_restarts)
    if [[ -f $sage_folder/failures && ! -L $sage_folder/failures && -O $sage_folder/failures ]]; then
        found=$(head -c 20 -- "$sage_folder/failures" 2>/dev/null | LC_ALL=C tr -d '\000') || :
    fi
    # A start that was not told of restarts has begun the count anew.
    if [[ ${SLURM_RESTART_COUNT:-0} -eq $restarts && $found =~ ^[0-9]{1,6}$ ]]; then
        echo $((10#$found))
    else
        echo "$restarts"
    fi
}

# How often SLURM has restarted the job; the highest number where several sources differ.
sage_restarts() {
    local most=${SLURM_RESTART_COUNT:-0} each
    for each in $(sage_job | LC_ALL=C grep -oE ' Restarts=[0-9]{1,9} ' | tr -cd '0-9\n'); do
        if [[ $((10#$each)) -gt $most ]]; then
            most=$((10#$each))
        fi
    done
    echo "$most"
}

# Write the count whole and bring it to disk; fails where that is not certain.
sage_write_failures() {
    local draft="$sage_folder/failures.$$"
    { echo "$1" >"$draft" && sync -- "$draft" && mv -fT -- "$draft" "$sage_folder/failures" &&
        sync -- "$sage_folder" && [[ $(cat -- "$sage_folder/failures") == "$1" ]]; } 2>/dev/null
}

# What SLURM knows of this job: the line of its own number, which may also stand for a whole array.
sage_job() {
    { scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null || :; } |
        LC_ALL=C grep -m 1 "^JobId=$SLURM_JOB_ID " || :
}

# The job as scontrol takes it. An array's task by both numbers: one task has the array's own, which stands for all.
# Not from SLURM_ARRAY_TASK_ID, which may be left over where the job was submitted from inside another array.
sage_name() {
    if [[ $1 =~ ^JobId=[0-9]+\ ArrayJobId=([0-9]+)\ ArrayTaskId=([0-9]+)\  ]]; then
        echo "${BASH_REMATCH[1]}_${BASH_REMATCH[2]}"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# A job that was cancelled, or that SLURM is requeueing by itself, is no longer running: leave it alone.
sage_requeue() {
    local found
    found=$(sage_job)
    if [[ $found != *" JobState=RUNNING "* ]]; then
        printf 'sage: job %s: %s; SLURM is ending it\n' "$SLURM_JOB_ID" "$1" >&2
        return 0
    fi
    # Said first: SLURM may kill this script as soon as it has the request.
    printf 'sage: job %s: %s; requeued\n' "$SLURM_JOB_ID" "$1" >&2
    if ! scontrol requeue "$(sage_name "$found")"; then
        printf 'sage: job %s: SLURM refused the requeue; submit it again to go on\n' "$SLURM_JOB_ID" >&2
        return 1
    fi
}
