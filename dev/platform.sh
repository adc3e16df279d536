#!/bin/sh
# Run by dev/test --platform, and by nothing else: SUITE [--author]. Runs dev/test in a Debian of that suite.
#
# The Debian is a chroot, /var/cache/sys-virt-event/SUITE. It is made by debootstrap with no more than the minimum, so
# that what dev/packages forgets is missed. It is kept, brought up to date before each run, and can be removed at any
# time. What MANIFEST lists is copied to its /srv/sys-virt-event, where it stays until the next run. All that is mounted
# and started belongs to the namespaces in which dev/test runs this: it is process 1 there, and root.

# shellcheck source=dev/setup.sh
. "$(dirname "$0")/setup.sh"

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
MIRROR=http://deb.debian.org/debian
suite=$1
author=${2-}
root=/var/cache/sys-virt-event/$suite
tree=/srv/sys-virt-event

fail() {
    say "$*"
    exit 1
}

# Of the environment it gets what apt-get may need, and how patient tests are.
inside() {
    chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive PATH="$PATH" \
        ${http_proxy:+"http_proxy=$http_proxy"} ${TEST_SLOW:+"TEST_SLOW=$TEST_SLOW"} "$@" </dev/null
}

# One that was not finished is made anew.
bootstrap() {
    if [ -d "$root" ]; then
        return
    fi
    say "debootstrap $suite $root (this takes a few minutes, the first time)"
    rm -rf "$root.new"
    debootstrap --variant=minbase "$suite" "$root.new" "$MIRROR" >"$root.log" 2>&1 || fail "No Debian: see $root.log"
    # Unstable's lists expire within days, and a mirror that lags behind will do, too.
    options=
    if [ "$suite" = sid ]; then
        options='[check-valid-until=no] '
    fi
    printf "%s $options%s %s main\n" deb "$MIRROR" "$suite" deb-src "$MIRROR" "$suite" >"$root.new/etc/apt/sources.list"
    # No package is to start a daemon.
    printf '#!/bin/sh\nexit 101\n' >"$root.new/usr/sbin/policy-rc.d"
    chmod +x "$root.new/usr/sbin/policy-rc.d"
    mv "$root.new" "$root"
}

mount_all() {
    mount -t proc proc "$root/proc" &&
        mount --rbind /sys "$root/sys" &&
        mount --rbind /dev "$root/dev" &&
        mount -t tmpfs tmpfs "$root/run" &&
        mount -t tmpfs tmpfs "$root/tmp"
}

# A run that was killed may have left packages half installed.
upgrade() {
    cp -L /etc/hosts /etc/resolv.conf "$root/etc/"
    inside dpkg --configure -a >/dev/null &&
        inside apt-get -qq update &&
        inside apt-get -qq -y -o Dpkg::Use-Pty=0 --fix-broken dist-upgrade >/dev/null
}

copy_tree() {
    rm -rf "$root$tree"
    mkdir "$root$tree"
    sed 's/[[:space:]].*//' MANIFEST >"$root/tmp/list" &&
        tar -c -f "$root/tmp/tree.tar" -T "$root/tmp/list" &&
        tar -x -f "$root/tmp/tree.tar" --no-same-owner -C "$root$tree"
}

if [ $$ -ne 1 ] || [ -z "$suite" ]; then
    fail "This is run by dev/test --platform"
fi
mkdir -p "${root%/*}" || exit 1
exec 9>"$root.lock"
flock -n 9 || fail "Another test of $suite is running"
bootstrap
mount_all || fail "Cannot mount what the tests need in $root: is this a container without privileges?"
upgrade || fail "Cannot bring $root up to date"
copy_tree || fail "Cannot copy the tree to $root$tree"
# As long as there is no loop it is what a user may have who gives "make test" to what README wants to be installed.
if ! inside perl -MEV -e 1 2>/dev/null; then
    say "make test, with no loop and no libvirtd, in $root"
    inside env --chdir="$tree" sh -c 'sh dev/demo >/dev/null && make -s test' 9>&- ||
        fail "$suite: the suite has failed without loops"
fi
say "sh dev/test${author:+ $author}, in $root"
# shellcheck disable=SC2086 # a word or none
inside env --chdir="$tree" sh dev/test $author 9>&-
status=$?
say "$suite: the suite has $([ $status -eq 0 ] && echo passed || echo "failed: $status")"
exit $status
