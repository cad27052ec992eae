# shellcheck shell=bash
# First process of a pid namespace: $1 is the log, the rest a command. What runs here
# ends with this, and this with its input.
log=$1
shift
"$@" </dev/null >>"$log" 2>&1 &
echo ready
read -r _ || true
