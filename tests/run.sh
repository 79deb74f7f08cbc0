#!/usr/bin/env bash
# Installs what is missing and runs the tests.
#
#   tests/run.sh                 checks of the source, then every test but the long ones
#   tests/run.sh --quick         checks of the source and the unit tests: no root needed, under a minute
#   tests/run.sh --long          the long tests as well
#   tests/run.sh [...] -- ARGS   hands ARGS to pytest (-k name, -x, --lf)
set -euo pipefail
cd "$(dirname "$0")/.."

folders=(tests/unit tests/simulation tests/mutation tests/runtime tests/runtime_images tests/network tests/cluster)
marks=(-m "not long")
quick=
given=("$@")
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) quick=yes folders=(tests/unit) ;;
    --long) marks=() ;;
    --) shift; break ;;
    *) printf 'run.sh: unknown option %s: known are --quick, --long and --\n' "$1" >&2; exit 2 ;;
  esac
  shift
done

# The other tests make namespaces, cgroups and mounts.
if [ -z "$quick" ] && [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo 'run.sh: the tests need root and there is no sudo: run this as root' >&2; exit 1; }
  exec sudo --preserve-env=CI,PATH bash tests/run.sh "${given[@]}"
fi

if [ -n "$quick" ]; then deploy/prepare-host.sh --python-only; else deploy/prepare-host.sh --tests; fi
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"

failed=()
check() {
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    printf '%-22s ok\n' "$name"
  else
    printf '%-22s FAILED: %s\n%s\n' "$name" "$*" "$output"
    failed+=("$name")
  fi
}
check "lint" ruff check --quiet .
check "format" ruff format --quiet --check .
check "types" mypy
check "imports" lint-imports
check "generated code" python proto/orch_proto/generate.py --check
check "page of defaults" python proto/orch_proto/defaults_page.py --check
if [ ${#failed[@]} != 0 ]; then
  printf 'run.sh: stopped before the tests, as these checks failed: %s\n' "${failed[*]}" >&2
  exit 1
fi

present=()
for folder in "${folders[@]}"; do
  if [ -n "$(find "$folder" -name 'test_*.py' -print -quit 2>/dev/null)" ]; then present+=("$folder"); fi
done
exec python -m pytest "${present[@]}" "${marks[@]}" "$@"
