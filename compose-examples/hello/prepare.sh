#!/bin/sh
# Puts a static busybox into the build's folder, so that the image needs nothing from any registry.
# Safe to run again. Needs Debian or Ubuntu, and root (or sudo) only if busybox-static is not installed yet.
set -eu
cd "$(dirname "$0")"

# Debian's plain busybox package is linked dynamically and would not start in an otherwise empty image.
is_static() {
    [ -x "$1" ] && ! ldd "$1" >/dev/null 2>&1
}

if ! is_static /bin/busybox; then
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo"
    $as_root apt-get update -q
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends busybox-static
fi
is_static /bin/busybox || { echo "prepare.sh: /bin/busybox is not static; install busybox-static" >&2; exit 1; }

if ! cmp -s /bin/busybox busybox; then
    cp /bin/busybox busybox.new
    chmod 755 busybox.new
    mv busybox.new busybox
fi
echo "compose-examples/hello is ready: orch deploy compose-examples/hello/stack.yml"
