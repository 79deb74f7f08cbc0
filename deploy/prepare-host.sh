#!/usr/bin/env bash
# Installs on a Debian or Ubuntu host what orch needs and is missing, and makes .venv with the locked versions.
#
#   deploy/prepare-host.sh                   what a node needs, and .venv
#   deploy/prepare-host.sh --tests           and what the tests need besides
#   deploy/prepare-host.sh --python-only     .venv alone: enough for unit tests, and for orch against a cluster elsewhere
#   deploy/prepare-host.sh --packages-only   what a node needs, no .venv
#   deploy/prepare-host.sh --print-python    prints which Python is used
#
# Run again, it changes nothing when nothing is missing. It needs root (or sudo) only when packages are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

# command to look for : Debian package that brings it
node_needs=(ip:iproute2 nft:nftables busybox:busybox-static)
test_needs=(conntrack:conntrack prometheus:prometheus promtool:prometheus debootstrap:debootstrap newuidmap:uidmap slirp4netns:slirp4netns)

say() { printf 'prepare-host: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

needs=("${node_needs[@]}")
case "${1:-}" in
  "" | --packages-only) ;;
  --tests) needs+=("${test_needs[@]}") ;;
  --python-only | --print-python) needs=() ;;
  *) fail "unknown option $1: they stand at the top of this script" ;;
esac

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "there is no Python 3.11, 3.12 or 3.13 on PATH: orch needs one of them; install python3 (Debian 12 has 3.11)"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "cannot run '$*': it needs root and there is no sudo; run this script as root"
  fi
}

install_packages() {
  command -v apt-get >/dev/null ||
    fail "cannot install $*: this host has no apt-get; install them with its own package manager and run this again"
  say "installing $*"
  # A package must not start its service: what is wanted of them is the program.
  local policy=/usr/sbin/policy-rc.d made_policy=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    made_policy=yes
  fi
  local options=(-qq -y --no-install-recommends -o DPkg::Lock::Timeout=300)
  local status=0 log
  log=$(mktemp)
  # The lists may be absent or old: fetch them once, only when the packages cannot be had without.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" >"$log" 2>&1 || {
    as_root apt-get update -qq >>"$log" 2>&1 || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" >>"$log" 2>&1 || status=$?
  }
  [ -z "$made_policy" ] || as_root rm -f "$policy"
  if [ "$status" != 0 ]; then
    cat "$log" >&2
    fail "apt-get could not install $*: see its words above; mend that and run this again"
  fi
  rm -f "$log"
  local service
  for service in prometheus docker-registry; do
    if [[ " $* " == *" $service "* ]] && command -v systemctl >/dev/null; then
      as_root systemctl disable "$service.service" >/dev/null 2>&1 || true
    fi
  done
}

if [ "${1:-}" = --print-python ]; then
  find_python
  exit
fi
missing=()
for need in "${needs[@]}"; do
  package=${need#*:}
  command -v "${need%%:*}" >/dev/null || [[ " ${missing[*]-} " == *" $package "* ]] || missing+=("$package")
done
python=$(find_python)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
if [ "${1:-}" = --packages-only ]; then exit; fi

# The stamp names all that decides what .venv holds; it is written last, so a broken installation is made anew.
stamp="$("$python" -c 'import sys; print(sys.version)') $(cat pyproject.toml requirements-dev.lock | sha256sum) $PWD"
if [ "$(cat .venv/orch-stamp 2>/dev/null)" != "$stamp" ]; then
  say "making .venv (with $python)"
  [ -x .venv/bin/python ] && .venv/bin/python -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
  quiet=(--quiet --quiet --disable-pip-version-check --no-input)
  # Packages first, each checked against its digest; then the project itself, built with the locked back end.
  .venv/bin/python -m pip install "${quiet[@]}" --require-hashes -r requirements-dev.lock
  .venv/bin/python -m pip install "${quiet[@]}" --no-deps --no-build-isolation --editable .
  printf '%s' "$stamp" >.venv/orch-stamp
fi
