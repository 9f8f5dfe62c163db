#!/usr/bin/env bash
# The scratch folder of a run of e2e/test, the processes that belong to it, and its end: read by e2e/test.

scratch=
child=
# Process groups of what runs beside the parts.
beside=()

# Frees the FUSE mounts below our scratch folder, also those whose server is gone,
# and ends the processes of this run.
clean_up() {
    trap - EXIT
    trap '' INT TERM HUP
    # Everything started by a step is in its process group.
    local group
    for group in $child "${beside[@]}"; do kill -TERM -- "-$group" 2>/dev/null; done
    if [[ -n $scratch ]]; then
        local environment pid
        for environment in /proc/[0-9]*/environ; do
            pid=${environment#/proc/} pid=${pid%/environ}
            [[ $pid == "$$" || $pid == "$BASHPID" ]] && continue
            if grep -qzFx "VSC_BLOB_E2E_SCRATCH=$scratch" "$environment" 2>/dev/null; then
                kill -KILL "$pid" 2>/dev/null
            fi
        done
        local device mountpoint
        while read -r device mountpoint; do
            fail "left behind and freed now: mount $mountpoint"
            local abort=/sys/fs/fuse/connections/${device#*:}/abort
            [[ -e $abort ]] && echo 1 >"$abort"
            umount -l "$mountpoint"
        done < <(awk -v under="$scratch/" 'index($5, under) == 1 { print $3, $5 }' /proc/self/mountinfo | tac)
        rm -rf --one-file-system "$scratch"
    fi
}
trap clean_up EXIT
trap 'fail "interrupted"; exit 130' INT
trap 'fail "terminated"; exit 143' TERM HUP

make_scratch() {
    # Short, because unix socket paths below it must fit into 108 bytes.
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/vsc-e2e.XXXXXX") || exit 2
    # Other users than root reach the mounts below it (pjdfstest).
    chmod 755 "$scratch" || exit 2
    export VSC_BLOB_E2E_SCRATCH=$scratch TMPDIR=$scratch VSC_BLOB_E2E_REPORT=$scratch/report
    mkdir "$VSC_BLOB_E2E_REPORT"
    # The file that lists a connection's abort switch; normally mounted by the system.
    [[ -e /sys/fs/fuse/connections ]] && ! mountpoint -q /sys/fs/fuse/connections &&
        mount -t fusectl none /sys/fs/fuse/connections
    return 0
}

# Runs a command in a process group of its own (so that Ctrl-C ends all of it),
# output to the terminal and to $log.
log=
step() {
    log=$scratch/step.log
    set -m
    ( set +m; "$@" 2>&1 </dev/null | tee "$log"; exit "${PIPESTATUS[0]}" ) &
    child=$!
    set +m
    wait "$child"
    local status=$?
    child=
    return "$status"
}
