#!/usr/bin/env bash
# How long the parts and suites of a run of e2e/test took, and how their cases ended: read by e2e/test.

# A suite that takes longer is named in the table of times, in seconds.
readonly LONG_SUITE=30

parts=()
declare -A seconds_of=()

# timed PART COMMAND...: adds the time of the command to the part's.
timed() {
    local part=$1 begin=$SECONDS status
    shift
    "$@"
    status=$?
    [[ -v seconds_of[$part] ]] || { parts+=("$part"); seconds_of[$part]=0; }
    ((seconds_of[$part] += SECONDS - begin, 1))
    return "$status"
}

# Reads cargo's and libtest's lines in $log: "SECONDS NAME" for each test binary.
libtest_times() {
    awk '
        / Running unittests / {
            name = $4; sub(/^\(.*\//, "", name); sub(/-[0-9a-f]+\)$/, "", name); name = name " (unit tests)"
        }
        / Running tests\// { name = $2; sub(/^tests\//, "", name); sub(/(\/main)?\.rs$/, "", name) }
        / Doc-tests / { name = $2 " (documentation)" }
        /^test result: / {
            if (match($0, /finished in [0-9.]+s/)) print substr($0, RSTART + 12, RLENGTH - 13), name
        }
    ' "$log"
}

times() {
    local part sum=0
    say "times"
    for part in "${parts[@]}"; do
        printf '%-28s %6d s\n' "$part" "${seconds_of[$part]}"
        ((sum += seconds_of[$part], 1))
    done
    printf '%-28s %6d s\n' "sum" "$sum"
    if [[ -s $scratch/suites ]]; then
        printf '\nsuites over %d s:\n' "$LONG_SUITE"
        sort -rn "$scratch/suites" | awk -v long="$LONG_SUITE" '
            $1 >= long { printf "  %-26s %6d s\n", substr($0, length($1) + 2), $1 }'
    fi
}

kinds=()
declare -A passed=() failed=() skipped=()
total_passed=0 total_failed=0 total_skipped=0

# count KIND PASSED FAILED SKIPPED
count() {
    [[ -v passed[$1] ]] || { kinds+=("$1"); passed[$1]=0 failed[$1]=0 skipped[$1]=0; }
    ((passed[$1] += $2, failed[$1] += $3, skipped[$1] += $4, 1))
    ((total_passed += $2, total_failed += $3, total_skipped += $4, 1))
}

# check KIND COMMAND...: a step that counts as one test.
check() {
    local kind=$1
    shift
    say "$*"
    if step "$@"; then count "$kind" 1 0 0; else fail "failed: $*"; count "$kind" 0 1 0; fi
}

# Reads libtest's closing lines in $log: "KIND PASSED FAILED SKIPPED" for each binary that ran.
libtest_counts() {
    awk '
        / Running unittests / { kind = "unit tests" }
        / Running tests\// {
            split($2, path, "/")
            kind = (system("test -e e2e/" $2) == 0) ? "system suites" : "integration tests"
        }
        / Doc-tests / { kind = "documentation tests" }
        /^test result: / {
            match($0, /[0-9]+ passed/); p = substr($0, RSTART) + 0
            match($0, /[0-9]+ failed/); f = substr($0, RSTART) + 0
            match($0, /[0-9]+ ignored/); i = substr($0, RSTART) + 0
            print p, f, i, kind
            if (f > 0) told++
        }
        # A binary that died (signal, abort) closes without a result; cargo names it all the same.
        /^error: test failed, to rerun pass / || /^error: doctest failed, to rerun pass / { broken++ }
        END { if (broken > told) print 0, broken - told, 0, "test binaries that died" }
    ' "$log"
}

# tests ARGUMENTS...: cargo test over the workspace, counted by kind.
tests() { tests_of --workspace "$@"; }

# tests_of ARGUMENTS...: the same over the packages that are named.
tests_of() {
    say "cargo test $*"
    local within=${limit:-$TEST_LIMIT}
    step timeout --kill-after=30 "$within" cargo test --locked --profile "$profile" --no-fail-fast "$@"
    local status=$? told=0 p f i kind
    libtest_times >>"$scratch/suites"
    while read -r p f i kind; do
        count "$kind" "$p" "$f" "$i"
        ((told += f, 1))
    done < <(libtest_counts)
    # Build error, time limit: nothing to count, and a failure all the same.
    if ((status != 0 && told == 0)); then
        ((status == 124 || status == 137)) && fail "the tests did not finish within $within"
        count "cargo test (exit code $status)" 0 1 0
    fi
}

# Suites that run a tool with cases of its own (csi-sanity, pjdfstest) leave
# "PASSED FAILED SKIPPED" in a file of its name.
count_reports() {
    local report p f i
    for report in "$VSC_BLOB_E2E_REPORT"/*; do
        [[ -e $report ]] || continue
        read -r p f i <"$report" && count "cases of ${report##*/}" "$p" "$f" "$i"
    done
}
