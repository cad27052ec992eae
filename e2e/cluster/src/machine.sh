# shellcheck shell=bash
# The disk of a node, which outlives the node's restarts: a file system in a mount
# namespace of its own at $1. It goes when this ends, and this ends with its input.
set -eu
mount -t tmpfs -o mode=0755,size=4g disk "$1"
for dir in etc/upper etc/work opt/upper opt/work lib log; do
  mkdir -p "$1/$dir"
done
echo ready
read -r _ || true
