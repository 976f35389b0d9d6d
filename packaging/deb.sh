#!/usr/bin/env bash
# Build the Debian package of this tree: build/*.deb.  Called by `make deb`.
#
#   packaging/deb.sh [--version VERSION] [--out FOLDER]
#
# The tree is copied first (what git knows, as it is on disk now), because dpkg-buildpackage wants debian/ at its top and writes
# into it.  As root it installs what the build needs; as another user it says what is missing.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

say() { printf 'deb: %s\n' "$*" >&2; }

version=$(sed -n 's/^VERSION: Final = "\(.*\)"$/\1/p' privsep/version.py)
out=build
while [ $# -gt 0 ]; do
    case $1 in
    --version) version=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    *) say "unknown argument $1" && exit 2 ;;
    esac
done

# COMMAND|PACKAGE: what is started here; the rest stands in debian/control.
tools() {
    local row missing=()
    for row in 'dpkg-buildpackage|dpkg-dev' 'dh|debhelper' 'dh_python3|dh-python' 'lintian|lintian'; do
        command -v "${row%%|*}" >/dev/null || missing+=("${row##*|}")
    done
    [ ${#missing[@]} = 0 ] || get "${missing[@]}"
}

get() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "missing: $*.  Install by:  apt-get install $*  (as root)"
        exit 1
    fi
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "$@" </dev/null >/dev/null 2>&1 ||
        { apt-get update -q </dev/null >/dev/null && apt-get install -y -q --no-install-recommends "$@" </dev/null >&2; }
}

files() {
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git ls-files --cached --others --exclude-standard
    else
        find . -type f -not -path './.venv/*' -not -path './build/*' -not -name '*.pyc'
    fi | while IFS= read -r path; do [ ! -e "$path" ] || printf '%s\n' "$path"; done
}

tools
mkdir -p "$out"
out=$(realpath "$out")
work=$(mktemp -d "$out/deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/privsep-ga-$version
mkdir "$tree"
files | tar -c --files-from=- | tar -x -C "$tree"

# The newest change's time: the same tree gives the same package, byte for byte.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
cp -r "$tree/packaging/debian" "$tree/debian"
sed -e "s/@VERSION@/$version/" -e "s/@DATE@/$(date -R -u -d "@$SOURCE_DATE_EPOCH")/" \
    "$tree/debian/changelog.in" >"$tree/debian/changelog"
rm "$tree/debian/changelog.in"

cd "$tree"
missing=$({ dpkg-checkbuilddeps 2>&1 || true; } | sed -n 's/.*Unmet build dependencies: //p' | sed 's/ *([^)]*)//g; s/:any//g')
# shellcheck disable=SC2086
[ -z "$missing" ] || get $missing
if ! dpkg-buildpackage -b -us -uc >"$work/log" 2>&1; then
    cat "$work/log" >&2
    exit 1
fi
lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$work"/*.deb >&2
for package in "$work"/*.deb; do
    mv -f "$package" "$out/"
    printf '%s\n' "$out/${package##*/}"
done
