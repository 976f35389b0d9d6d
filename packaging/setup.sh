#!/usr/bin/env bash
# Bring a machine to where `make test` and `make demo` run: system packages, .venv, libraries.  Called by the Makefile.
#
#   packaging/setup.sh tools         install what is missing of the system's tools (root), or say what is missing
#   packaging/setup.sh venv DIR      make the virtual environment and install the libraries into it
#   packaging/setup.sh readable DIR  say so when other system users cannot read the interpreter, DIR or this tree
#
# Each need is a file or a command, so a machine that has it from elsewhere is asked for nothing.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

# The interpreter: the system's own where it is new enough, because system users can read it; else the first one in PATH.
python() {
    local candidate
    for candidate in /usr/bin/python3 "$(command -v python3 || true)" "$(command -v python3.13 || true)" \
        "$(command -v python3.12 || true)" "$(command -v python3.11 || true)"; do
        if [ -x "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "no Python 3.11 or newer found"
    return 1
}

has_header() { echo "#include <$1>" | cc -E -x c - >/dev/null 2>&1; }
has_library() { "$(python)" -c "import ctypes; ctypes.CDLL('$1')" 2>/dev/null; }
has_python_header() {
    local include
    include=$("$(python)" -c 'import sysconfig; print(sysconfig.get_path("include"))') && [ -f "$include/Python.h" ]
}

# PACKAGE|CHECK|WHAT FOR, one a line.
needs() {
    cat <<'END'
gcc|command -v cc|building python-prctl
libc6-dev|has_header stdio.h|building python-prctl
python3-dev|has_python_header|building python-prctl
libcap-dev|has_header sys/capability.h|building python-prctl
libseccomp2|has_library libseccomp.so.2|compiling the system call filters
python3-venv|"$(python)" -c "import ensurepip, venv"|the virtual environment
e2fsprogs|command -v mkfs.ext4|the freeze tests and the demo
xfsprogs|command -v mkfs.xfs|the freeze tests and the demo
btrfs-progs|command -v mkfs.btrfs|the freeze tests
util-linux|command -v losetup && command -v setpriv|loop devices and checks as other users
mount|command -v mount|the freeze tests and the demo
iproute2|command -v ip|the network tests
strace|command -v strace|the system call tests
man-db|command -v man|the man pages' tests
mandoc|command -v mandoc|the man pages' tests
systemd|command -v systemd-analyze && command -v systemd-sysusers|the checks of the service's unit
checkpolicy|command -v checkmodule|the SELinux policy
semodule-utils|command -v semodule_package|the SELinux policy
secilc|command -v secilc|the SELinux policy
gawk|command -v gawk|the SELinux policy
m4|command -v m4|the SELinux policy
selinux-policy-dev|test -e /usr/share/selinux/devel/Makefile|the SELinux policy
python3-setools|test -e /usr/lib/python3/dist-packages/setools|the SELinux policy
zsh|command -v zsh|the completions' tests
fish|command -v fish|the completions' tests
tzdata|test -e /usr/share/zoneinfo/Asia/Kolkata|the time zone tests
qemu-guest-agent|test -x /usr/sbin/qemu-ga|comparing with the peer
END
}

missing() {
    local package check what
    while IFS='|' read -r package check what; do
        eval "$check" >/dev/null 2>&1 || printf '%s|%s\n' "$package" "$what"
    done < <(needs)
}

tools() {
    # Tools of the administrator may stand outside an ordinary user's PATH.
    PATH=$PATH:/usr/sbin:/sbin
    local rows packages
    rows=$(missing)
    [ -n "$rows" ] || return 0
    packages=$(cut -d'|' -f1 <<<"$rows" | tr '\n' ' ')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing ${packages}"
        export DEBIAN_FRONTEND=noninteractive
        # The lists may be absent or old: they are fetched when the first try does not do.
        # A package may try to start its service (qemu-guest-agent does): without a service manager that does nothing, and
        # without its device the unit stays inactive.
        # shellcheck disable=SC2086
        apt-get install -y -q --no-install-recommends $packages </dev/null >/dev/null 2>&1 ||
            { apt-get update -q </dev/null >/dev/null && apt-get install -y -q --no-install-recommends $packages </dev/null; } ||
            say "apt-get could not install everything"
        rows=$(missing)
        [ -n "$rows" ] || return 0
    fi
    say "missing on this system (what needs it is skipped):"
    while IFS='|' read -r package what; do say "    $package: $what"; done <<<"$rows"
    say "install by:  apt-get install $(cut -d'|' -f1 <<<"$rows" | tr '\n' ' ')(as root; Debian's names)"
}

# requirements GROUP...: the ranges that pyproject.toml gives, one a line; GROUP is `dependencies` or an extra.
requirements() {
    "$1" - "${@:2}" <<'END'
import sys
import tomllib

with open("pyproject.toml", "rb") as f:
    project = tomllib.load(f)["project"]
for group in sys.argv[1:]:
    print(*(project["dependencies"] if group == "dependencies" else project["optional-dependencies"][group]), sep="\n")
END
}

venv() {
    local dir=$1 base list
    base=$(python)
    if ! "$dir/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "making $dir from $base"
        rm -rf "$dir"
        "$base" -m venv "$dir"
    fi
    local pip=("$dir/bin/python" -m pip --disable-pip-version-check --no-input install --quiet)
    list=$(requirements "$dir/bin/python" dependencies fast dev)
    # python-prctl is compiled here, the others are not: a machine without a compiler gets all but that one.
    "${pip[@]}" -r <(grep -v '^python-prctl' <<<"$list")
    if ! "${pip[@]}" --use-pep517 -r <(grep '^python-prctl' <<<"$list"); then
        say "python-prctl could not be built: the agent will not start.  See what is missing above."
        [ "$(id -u)" != 0 ] || return 1
    fi
}

readable() {
    [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null || return 0
    local path interpreter
    interpreter=$("$1/bin/python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    for path in "$interpreter" "$("$1/bin/python" -c 'import os; print(os.__file__)')" \
        "$PWD/privsep/domains.py" "$("$1/bin/python" -c 'import msgpack; print(msgpack.__file__)')"; do
        if ! setpriv --reuid=65534 --regid=65534 --clear-groups test -r "$path"; then
            say "other users cannot read $path: processes with a user of their own will not start."
            say "    Move the tree (or the interpreter) where every user may go, or chmod a+rx the folders above it."
        fi
    done
}

"$@"
