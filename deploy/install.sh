#!/usr/bin/env bash
# Installs orch on this host as a service: the programs in /opt/orch, a systemd unit, the group orch.
#
#   deploy/install.sh                 install or upgrade, and start the node daemon
#   deploy/install.sh --no-start      install or upgrade only
#   deploy/install.sh --stage FOLDER  put all files below FOLDER, to look at them or to try them from there
#
# An upgrade restarts the node daemon; containers go on running.
set -euo pipefail
cd "$(dirname "$0")/.."

start=yes
stage=
while [ $# -gt 0 ]; do
  case "$1" in
    --no-start) start= ;;
    --stage) stage=${2:?--stage needs a folder}; start=; shift ;;
    *) printf 'install: unknown option %s: known are --no-start and --stage FOLDER\n' "$1" >&2; exit 2 ;;
  esac
  shift
done

fail() { printf 'install: %s\n' "$*" >&2; exit 1; }
if [ -z "$stage" ]; then
  [ "$(id -u)" = 0 ] || fail "installing for all users needs root: repeat it with sudo"
  [ -z "$start" ] || [ -d /run/systemd/system ] ||
    fail "this host does not run systemd: install with --no-start and let your init system run /opt/orch/venv/bin/orchd"
fi
deploy/prepare-host.sh --packages-only

python=$(deploy/prepare-host.sh --print-python)
venv=$stage/opt/orch/venv
install -d "$stage/opt/orch/share" "$stage/usr/local/bin" "$stage/etc/systemd/system"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
quiet=(--quiet --quiet --disable-pip-version-check --no-input)
# The lock file holds development's packages too; as constraints it pins only what orch itself asks for.
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
sed -n 's/^\([a-z0-9-]*==[^ ]*\).*/\1/p' requirements-dev.lock >"$constraints"
"$venv/bin/python" -m pip install "${quiet[@]}" --upgrade --constraint "$constraints" .

cp -r docs deploy/prometheus deploy/grafana "$stage/opt/orch/share/"
install -m 644 deploy/orchd.service "$stage/etc/systemd/system/orchd.service"
ln -sf /opt/orch/venv/bin/orch "$stage/usr/local/bin/orch"

if [ -z "$stage" ]; then
  # Members of the group may use the manager's socket without being root.
  getent group orch >/dev/null || groupadd --system orch
  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
fi
if [ -n "$start" ]; then
  systemctl enable orchd.service
  systemctl restart orchd.service
  echo 'orchd runs. Make this host the first manager of a cluster with: orch cluster init'
else
  echo "orch is installed in ${stage}/opt/orch; start its daemon with: systemctl enable --now orchd"
fi
