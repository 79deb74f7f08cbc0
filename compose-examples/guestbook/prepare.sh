#!/bin/bash
# Makes a small Debian root file system with Python and Redis, and imports it as the image debian-base:12.
# Needs Debian or Ubuntu, root (or sudo), and access to a Debian mirror. Safe to run again: what exists is kept.
#
#   DEBIAN_MIRROR=URL   the mirror; by default the one this machine uses for bookworm, else deb.debian.org
#   ORCH=PATH           the orch command; by default the checkout's .venv/bin/orch, else orch
#   --tar-only          make the tar, import nothing
set -euo pipefail
cd "$(dirname "$0")"

suite=bookworm
image=debian-base:12
tar="$PWD/debian-base.rootfs.tar"
packages=python3,redis-server

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

if [ -z "${ORCH:-}" ]; then
    ORCH=../../.venv/bin/orch
    [ -x "$ORCH" ] || ORCH=orch
fi

find_mirror() {
    apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 2>/dev/null | awk -v s="$suite" '$2 == s { print $1; exit }'
}

make_tar() {
    if ! command -v debootstrap >/dev/null && [ ! -x /usr/sbin/debootstrap ]; then
        "${as_root[@]}" apt-get update -q
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends debootstrap
    fi
    local mirror=${DEBIAN_MIRROR:-$(find_mirror)}
    mirror=${mirror:-http://deb.debian.org/debian}
    "${as_root[@]}" rm -rf base-image
    # In a mount namespace of its own, so that what debootstrap mounts is gone whatever happens.
    "${as_root[@]}" unshare --mount --propagation private env PATH="/usr/sbin:/sbin:$PATH" \
        debootstrap --variant=minbase --include="$packages" "$suite" base-image "$mirror"
    "${as_root[@]}" rm -rf base-image/var/cache/apt/archives base-image/var/lib/apt/lists base-image/usr/share/{doc,man,locale}
    "${as_root[@]}" mkdir -p base-image/var/cache/apt/archives/partial base-image/var/lib/apt/lists/partial
    # Tasks get their devices from the runtime, so none are packed.
    "${as_root[@]}" tar --numeric-owner --xattrs --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' \
        -C base-image -cf - . > "$tar.new"
    mv "$tar.new" "$tar"
    "${as_root[@]}" rm -rf base-image
}

[ -s "$tar" ] || make_tar
[ "${1:-}" = --tar-only ] && exit 0
"$ORCH" image import "$tar" "$image"
echo "compose-examples/guestbook is ready: orch deploy compose-examples/guestbook/stack.yml"
