#!/usr/bin/env bash
# From a fresh Debian or Ubuntu host to a running stack: installs what is missing, starts a playground of three
# managers, deploys compose-examples/hello and asks it for a page. Run again, it goes on from whatever is there already.
#
#   deploy/quickstart.sh                all of it
#   deploy/quickstart.sh --setup-only   the installation alone: afterwards .venv/bin/orch works
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  "" | --setup-only) ;;
  *) printf 'quickstart: unknown option %s: only --setup-only is known\n' "$1" >&2; exit 2 ;;
esac

deploy/prepare-host.sh
orch="$PWD/.venv/bin/orch"
if [ "${1:-}" = --setup-only ]; then
  "$orch" version --client 2>/dev/null || "$orch" version
  printf 'orch is installed: %s\n' "$orch"
  exit 0
fi

# A node makes namespaces, cgroups and mounts.
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo 'quickstart: a node needs root and there is no sudo: run this as root' >&2; exit 1; }
  exec sudo bash deploy/quickstart.sh
fi

say() { printf '\n==> %s\n' "$*"; }

if host=$("$orch" playground env 2>/dev/null); then
  say "The playground is up already"
  "$orch" playground start
else
  if "$orch" playground status >/dev/null 2>&1; then
    say "Removing a playground that no longer runs"
    "$orch" playground down
  fi
  say "Starting a cluster of three nodes on this machine: orch playground up --managers 3"
  "$orch" playground up --managers 3
  host=$("$orch" playground env)
fi
eval "$host"

say "Deploying a stack of three small web servers: orch deploy compose-examples/hello/stack.yml"
compose-examples/hello/prepare.sh
"$orch" deploy compose-examples/hello/stack.yml

say "What runs: orch node ls, orch stack ps hello"
"$orch" node ls
"$orch" stack ls
"$orch" stack ps hello

url=http://172.31.250.11:8080/
say "What it answers at $url"
.venv/bin/python - "$url" <<'PYTHON'
import sys
import time
import urllib.error
import urllib.request

# The replicas run; the first request may still meet a server that is about to listen.
deadline = time.monotonic() + 10
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
while True:
    try:
        with opener.open(sys.argv[1], timeout=5) as answer:
            print(f"HTTP {answer.status}\n{answer.read(4096).decode(errors='replace').strip()}")
        break
    except (urllib.error.URLError, OSError) as error:
        if time.monotonic() > deadline:
            sys.exit(f"quickstart: {sys.argv[1]} does not answer: {error}; look at: orch stack ps hello, orch logs hello_web")
        time.sleep(0.1)
PYTHON

cat <<EOF

It works. To go on:
  export PATH="$PWD/.venv/bin:\$PATH"
  eval "\$(orch playground env)"
  orch service scale hello_web=5
  orch playground kill node-2       a node loses its power; look with: orch node ls, orch ps
  orch playground start node-2      and is back
  orch playground down              removes everything again
  docs/guides/first-stack.md        how to write a stack file of your own
EOF
