# Sourced by dev/demo, dev/test and dev/platform.sh: installs what is missing and builds in place. Nothing here is
# needed by users of the module, who have perl Makefile.PL, make, make test, make install.
# shellcheck shell=sh

cd "$(dirname "$0")/.." || exit 1

say() {
    printf '== %s\n' "$*"
}

# sudo by itself passes on no environment.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo env ${http_proxy:+"http_proxy=$http_proxy"} ${TEST_SLOW:+"TEST_SLOW=$TEST_SLOW"} "$@"
    else
        say "This takes root, or sudo: $*"
        return 1
    fi
}

# present DEBIAN-NAME PROBE
present() {
    if ! command -v dpkg-query >/dev/null; then
        sh -c "$2" >/dev/null 2>&1 </dev/null
        return
    fi
    for name in $(printf '%s' "$1" | tr '|' ' '); do
        if dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed; then
            return 0
        fi
    done
    return 1
}

# missing KIND...: a line "debian-name fedora-name" for each package of these kinds that is not there.
missing() {
    while read -r kind debian fedora probe; do
        case " $* " in
            *" $kind "*) present "$debian" "$probe" || echo "${debian%%|*} $fedora" ;;
        esac
    done <dev/packages
}

# install_missing KIND...
install_missing() {
    lines=$(missing "$@")
    if [ -z "$lines" ]; then
        return
    fi
    debian=$(echo "$lines" | cut -d' ' -f1 | xargs)
    fedora=$(echo "$lines" | cut -d' ' -f2 | xargs)

    if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; }; then
        say "These packages are missing, and cannot be installed from here (that takes apt-get, and root or sudo):"
        say "    Debian: apt-get install $debian"
        say "    Fedora: dnf install $fedora"
        exit 1
    fi

    say "Installing with apt-get (this can take a minute or two): $debian"
    # shellcheck disable=SC2086 # a list of words
    if ! log=$(apt_install $debian 2>&1); then
        printf '%s\n' "$log"
        say "apt-get could not install: $debian"
        exit 1
    fi
}

# An update that fails (another repository's, maybe) need not matter: the old lists may do.
apt_install() {
    as_root apt-get -qq -o DPkg::Lock::Timeout=120 update </dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
        install --no-install-recommends "$@" </dev/null
}

sources() {
    find Event.xs typemap kit/*.xs kit/client.? lib src script -name '*.o' -prune -o -type f -print 2>/dev/null | sort
}

# A Makefile holds the names of the files that it builds from. It is made anew when these, Makefile.PL or perl have
# changed; what was built from the old ones goes too.
makefile_is_current() {
    [ -f Makefile ] && make -q Makefile 2>/dev/null && [ "$(cat blib/sources 2>/dev/null)" = "$(sources)" ]
}

build() {
    if ! makefile_is_current; then
        say "perl Makefile.PL"
        rm -rf blib pm_to_blib ./*.o src/*.o kit/pm_to_blib kit/*.o
        PERL_MM_USE_DEFAULT=1 perl Makefile.PL </dev/null || exit 1
        if [ ! -f Makefile ]; then
            say "Makefile.PL has made no Makefile"
            exit 1
        fi
    fi
    say "make"
    make -s >/dev/null || exit 1    # warnings and errors go to stderr
    sources >blib/sources
}
