# shellcheck shell=bash
# Sourced by scripts/test: what a run may leave on the machine, and that it did not.

# Directories of the end-to-end suite are PREFIX<pid>-<number>; each binds its
# namespaces under netns/.
LEFTOVER_PREFIX=${TMPDIR:-/tmp}/sluice-e2e-

# What cargo's tests have in their environment, and with them all that they start, by
# which it is told from what other checkouts run at the same time.
TEST_RUN=SLUICE_TEST_RUN=$$-$(date +%s)

# Ids of processes that the tests of this run started, whoever is their parent by now.
processes_of_this_run() {
  local environ
  while read -r environ; do
    environ=${environ#/proc/}
    printf '%s\n' "${environ%/environ}"
  done < <(grep -lzFx "$TEST_RUN" /proc/[0-9]*/environ 2>/dev/null)
}

# Leaves out lines about what a process that lives has a name from, `sluice-e2e-PID-...`:
# the tests have ended, so that is another checkout's.
not_of_the_living() {
  local line pid
  while IFS= read -r line; do
    pid=${line##*/sluice-e2e-}
    pid=${pid%%-*}
    case "$pid" in
      *[!0-9]* | '') ;;
      *) [ ! -d "/proc/$pid" ] || continue ;;
    esac
    printf '%s\n' "$line"
  done
}

# Ids of processes whose program is one of our builds.
our_processes() {
  local link target
  for link in /proc/[0-9]*/exe; do
    target=$(readlink "$link" 2>/dev/null) || continue
    case "${target% (deleted)}" in
      "$CARGO_TARGET_DIR"/debug/* | "$CARGO_TARGET_DIR"/*/release/* | "$ROOT"/dist/*)
        link=${link#/proc/}
        printf '%s %s\n' "${link%/exe}" "$target"
        ;;
    esac
  done
}

# Removes what killed runs left: their processes, namespaces and directories.
# Those of runs that are alive, of other checkouts too, stay.
clean_leftovers() {
  local dir pid mounted program parent
  while read -r pid program; do
    # An orphan: whoever started it is gone.
    parent=$(awk '$1 == "PPid:" { print $2 }' "/proc/$pid/status" 2>/dev/null) || continue
    if [ "$parent" = 1 ]; then
      say "ending $program (process $pid), left by a run that was killed"
      kill -9 "$pid" 2>/dev/null || true
    fi
  done < <(our_processes)
  for dir in "$LEFTOVER_PREFIX"*; do
    [ -d "$dir" ] || continue
    pid=${dir#"$LEFTOVER_PREFIX"}
    pid=${pid%%-*}
    [ ! -d "/proc/$pid" ] || continue
    say "removing $dir, left by a run that was killed"
    # Namespaces, and small file systems in place of its directories.
    for mounted in "$dir"/netns/* "$dir"/*; do
      umount -l "$mounted" 2>/dev/null || true
    done
    rm -rf "$dir" || true
  done
  # Cgroups have the same names, in each hierarchy. Their processes end with the run,
  # which takes the kernel a moment.
  while read -r dir; do
    pid=${dir##*/sluice-e2e-}
    [ ! -d "/proc/${pid%%-*}" ] || continue
    for _ in 1 2 3 4 5; do
      find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$dir" ] || break
      sleep 1
    done
  done < <(find /sys/fs/cgroup -maxdepth 2 -type d -name 'sluice-e2e-*' 2>/dev/null)
}

# What the machine looks like as far as our tests could change it, a line a thing:
# the host's own rules, policy routing and links, named network namespaces, the tests'
# processes with the namespaces that they are in, mounts, and files at the places that an
# installed Sluice would use.
machine_state() (
  # In a subshell that goes on: a source that this machine lacks is an empty one.
  set +e +o pipefail
  nft --stateless list ruleset 2>/dev/null | sed 's/^/host ruleset: /'
  sed 's/^/host legacy table: /' /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null
  for family in -4 -6; do
    ip "$family" rule 2>/dev/null | sed "s/^/host ip $family rule: /"
    ip -o "$family" address show dev lo 2>/dev/null | awk '{ print "host address on lo:", $4 }'
  done
  ip -o link 2>/dev/null | awk -F': ' '{ print "host link:", $2 }'
  ip netns list 2>/dev/null | awk '{ print "named namespace:", $1 }'
  processes_of_this_run | while read -r pid; do
    printf 'process of a test: %s in %s: %s\n' "$pid" "$(readlink "/proc/$pid/ns/net")" \
      "$(tr '\0' ' ' <"/proc/$pid/cmdline")"
  done 2>/dev/null
  our_processes | sed 's/^/process: /'
  awk '/sluice|istio-cni|nsfs/ { print "mount:", $2 }' /proc/self/mounts | not_of_the_living
  find /run/istio-cni /etc/cni /opt/cni 2>/dev/null | sed 's/^/file: /'
  find /sys/fs/cgroup -maxdepth 2 -type d -name 'sluice-e2e-*' 2>/dev/null | sed 's/^/cgroup: /' | not_of_the_living
  find "$(dirname "$LEFTOVER_PREFIX")" -maxdepth 1 -name "$(basename "$LEFTOVER_PREFIX")*" 2>/dev/null | sed 's/^/directory: /' | not_of_the_living
)

# leaked BEFORE: prints what is there now and was not in the file BEFORE, and what
# of the host's own is gone; fails when there is any. Waits a little for what is
# still on its way out. That other things are gone (a process that ended) is fine.
leaked() {
  local before=$1 found try
  for try in {1..30}; do
    found=$(machine_state | sort | diff "$before" - |
      sed -n 's/^> /left behind: /p; s/^< host /no longer there: host /p')
    [ -n "$found" ] || return 0
    [ "$try" = 30 ] || sleep 1
  done
  printf '%s\n' "$found"
  return 1
}
