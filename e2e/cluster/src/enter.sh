# shellcheck shell=bash
# Puts a node into cgroups of its own and starts it in namespaces of its own. $1 is the
# process that holds its disk, $2 the cgroup, $3 the script, the rest its arguments.
set -eu
machine=$1 cgroup=$2 script=$3
shift 3
while read -r _ at type _; do
  case $type in cgroup | cgroup2) ;; *) continue ;; esac
  mkdir -p "$at$cgroup"
  # A new cpuset has no processor, and takes no process then.
  for file in cpuset.cpus cpuset.mems; do
    if [ "$type" = cgroup ] && [ -f "$at$cgroup/$file" ]; then
      cat "$at/$file" >"$at$cgroup/$file"
    fi
  done
  echo $$ >"$at$cgroup/cgroup.procs"
done </proc/self/mounts
exec nsenter "--mount=/proc/$machine/ns/mnt" -- \
  unshare --mount --uts --ipc --cgroup --pid --fork --kill-child --mount-proc -- \
  bash -c "$script" boot.sh "$@"
