# What the scripts that install and build share; sourced by them, from the top of the checkout.
# They set NAME first: of what is built, as it is said, and of the files in build/.
# shellcheck shell=bash

BUILD=${BUILD:-build}
[[ $BUILD = /* ]] || BUILD=$PWD/$BUILD
DATA_DIR=${HYPER_DATA_DIR:-/var/lib/hyper}
LOG=$BUILD/$NAME.log
WORK=$BUILD/$NAME # sources and objects; may be removed at any time, a change of options then takes longer to build

say() { printf '%s: %s\n' "$NAME" "$*"; }
die() { printf '%s: %s\n' "$NAME" "$*" >&2; exit 1; }

# Run a step's command with its output in the log; show the end of it where it fails.
quietly() {
    local what=$1 from
    shift
    from=$(($(wc -l <"$LOG") + 1))
    printf '\n# %s: %s\n' "$what" "$*" >>"$LOG"
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n "+$from" "$LOG" | tail -n 30 >&2
        die "$what failed; everything it said is in $LOG"
    fi
}

# Refuse what cannot be built here, and a second build beside this one; begin the log.
begin() {
    [ "$(id -u)" = 0 ] || die "root is needed (packages, $DATA_DIR): run it as root, for example with sudo"
    command -v apt-get >/dev/null || die "apt-get was not found: the build is written for Debian 12"
    [ "$(dpkg --print-architecture)" = amd64 ] ||
        die "only amd64 hosts are supported, this is $(dpkg --print-architecture)"
    mkdir -p "$WORK"
    exec 9>"$WORK/lock"
    flock -n 9 || die "another build is running in $WORK: wait for it to end"
    : >"$LOG"
}

# Version of a package that is installed; empty if it is not.
installed() { dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null | sed -n 's/^installed //p'; }

# Install those packages that are missing; with --update FIRST also the newest of that one.
install_packages() {
    local missing=() package newest updated=
    if [ "$1" = --update ]; then updated=$2 && shift 2; fi
    for package in "$@"; do
        [ -n "$(installed "$package")" ] || missing+=("$package")
    done
    if [ -n "$updated" ]; then
        newest=$(apt-cache policy "$updated" 2>/dev/null | sed -n 's/^ *Candidate: //p')
        if [ ${#missing[@]} = 0 ] && [ -n "$newest" ] && [ "$newest" != "$(installed "$updated")" ]; then
            missing+=("$updated")
        fi
    fi
    [ ${#missing[@]} != 0 ] || return 0
    say "reading the package lists"
    quietly "apt-get update" apt-get -q update
    say "installing ${missing[*]}"
    quietly "apt-get install" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 \
        -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"
}

# Compile in the background and say now and then how far it is: `progress` reads that from the log of this step.
compile() {
    local pid began=$SECONDS from step=60 next=60
    from=$(($(wc -l <"$LOG") + 1))
    printf '\n# compiling: %s\n' "$*" >>"$LOG"
    nice -n 10 "$@" >>"$LOG" 2>&1 &
    pid=$!
    # shellcheck disable=SC2064 # the value of now
    trap "kill $pid 2>/dev/null || true" EXIT
    if [ -t 1 ]; then step=2 next=2; fi
    while kill -0 $pid 2>/dev/null; do
        sleep 1
        [ $((SECONDS - began)) -ge $next ] || continue
        next=$((next + step))
        if [ -t 1 ]; then
            printf '\r%s: compiling: %s files, %s s ' "$NAME" "$(tail -n "+$from" "$LOG" | progress)" $((SECONDS - began))
        else
            say "compiling: $(tail -n "+$from" "$LOG" | progress) files, $((SECONDS - began)) s"
        fi
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
    trap - EXIT
    if ! wait $pid; then
        tail -n "+$from" "$LOG" | tail -n 30 >&2
        die "compiling failed; everything it said is in $LOG"
    fi
}
