# shellcheck shell=bash
# Sourced by the scripts beside it. Moves to the root of the repository and says
# where builds go: one target directory for every step, so that nothing is built twice.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
mkdir -p "$CARGO_TARGET_DIR"
CARGO_TARGET_DIR=$(cd "$CARGO_TARGET_DIR" && pwd)

# What people read goes to stderr: stdout is for results (scripts/bench --json).
say() { printf '%s\n' "$*" >&2; }
die() {
  say "$(basename "$0"): $*"
  exit 1
}
# A heading with the seconds since the script began.
step() { say "== [${SECONDS}s] $*"; }

have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# need_packages PACKAGE...: installs the Debian packages that are missing.
# Does nothing, and needs no root, when all are there.
need_packages() {
  local missing=() package
  have dpkg-query || die "not a Debian machine; install by hand: $*"
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  is_root || die "Debian packages are missing: run as root: apt-get install ${missing[*]}"
  step "installing Debian packages: ${missing[*]}"
  local apt=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3) log
  log=$(mktemp)
  if ! patiently apt_install >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    rm -f "$log"
    die "apt-get could not install: ${missing[*]}"
  fi
  rm -f "$log"
}
# For need_packages, whose variables it uses. A mirror that is being changed fails for a while.
apt_install() {
  "${apt[@]}" update </dev/null && DEBIAN_FRONTEND=noninteractive \
    "${apt[@]}" install --no-install-recommends "${missing[@]}" </dev/null
}

# patiently COMMAND...: what needs the network, up to four times within some minutes.
patiently() {
  local pause
  for pause in 5 20 60; do
    "$@" && return 0
    sleep "$pause"
  done
  "$@"
}
