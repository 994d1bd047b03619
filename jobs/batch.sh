# shellcheck shell=bash
# What a batch script does before its ranks start and after they have ended. pararun and the jobs of `sage submit`
# source it; it runs on the job's first node, where rank 0 will be.
#
#     sage_meet          set and export hostip and port: where the ranks meet
#     sage_await PID     wait for srun, handing signals on to its ranks; returns its exit status
#     sage_end STATUS    leave with what became of the ranks, after having the job requeued where that helps
#
# What `sage run` leaves with: 0 finished, 75 stopped by a signal and saved, 2 hopeless (a wrong setting, missing
# data, a run that diverges), any other status a failure that may not happen again: a killed rank, a lost node.

# SLURM signals the script along with its ranks; it has to outlive them.
trap : TERM USR1 USR2

# srun returns the highest status of all ranks, and 137 for those it killed itself because one had failed. So the
# first rank that has something to say says it here. In the folder of the submission, which all nodes see.
export SAGE_OUTCOME="${SLURM_SUBMIT_DIR:-.}/.sage-outcome-${SLURM_JOB_ID:-0}"

sage_meet() {
    rm -f "$SAGE_OUTCOME"
    hostip=${hostip:-$(sage_head)}
    if [[ -z $hostip ]]; then
        echo "sage: cannot tell the address of the first node of '$SLURM_JOB_NODELIST': set hostip" >&2
        exit 2
    fi
    if [[ -z ${port:-} ]]; then
        # Another one after a requeue, so that a rank left over from before cannot join.
        port=$((20000 + (SLURM_JOB_ID + 1009 * ${SLURM_RESTART_COUNT:-0}) % 10000))
        while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
            port=$((port + 1))
        done
    fi
    export hostip port
    unset rank world_size # srun numbers its tasks itself
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
    local status=$1 reason="" failures most=${max_requeues:-3}
    if [[ -s $SAGE_OUTCOME ]]; then
        read -r status reason <"$SAGE_OUTCOME"
    fi
    rm -f "$SAGE_OUTCOME"
    case $status in
    0) exit 0 ;;
    2) reason="hopeless: ${reason:-asked wrongly}" ;;
    75) sage_requeue "stopped and saved" && exit 75 ;;
    *)
        reason=${reason:-a rank left with status $status}
        failures=$(scontrol --oneliner show job "$SLURM_JOB_ID" | sed -n 's/.* Comment=sage: failure \([0-9]*\) .*/\1/p')
        failures=$((${failures:-0} + 1))
        if [[ $failures -le $most ]]; then
            scontrol update jobid="$SLURM_JOB_ID" comment="sage: failure $failures of at most $most: $reason" || :
            sage_requeue "failure $failures of at most $most: $reason" && exit "$status"
        else
            reason="failed again after $most requeues: $reason"
        fi
        ;;
    esac
    echo "sage: job $SLURM_JOB_ID ends with status $status${reason:+, $reason}" >&2
    exit "$status"
}

# A job that was cancelled, or that SLURM is requeueing by itself, is no longer running: leave it alone.
sage_requeue() {
    if ! scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q ' JobState=RUNNING '; then
        echo "sage: job $SLURM_JOB_ID: $1; SLURM is ending it" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
        echo "sage: job $SLURM_JOB_ID: $1; requeued" >&2
    else
        echo "sage: job $SLURM_JOB_ID: $1; cannot be requeued, the same command goes on" >&2
        return 1
    fi
}
