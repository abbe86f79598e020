#!/bin/sh
# Make a virtual environment with the project in it, editable.
#
#   PYTHON=python3 tools/install.sh VENV EXTRAS [STAMP-SUFFIX]
#
# A machine fresh from Debian's installer has a Python that cannot make virtual
# environments (ensurepip is in a package of its own): that is put right here.
# When something fails, no half-made VENV is left to confuse the next try.
set -eu

python=${PYTHON:-python3}
venv=$1
extras=$2
suffix=${3:-}
ours=no

fail() {
    echo "install: $*" >&2
    exit 1
}

forget() {
    status=$?
    [ "$status" = 0 ] || [ "$ours" = no ] || rm -rf "$venv"
    exit "$status"
}
trap forget EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

usable() {
    [ -x "$venv/bin/python" ] &&
        "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Package names of Debian: python3.13-venv belongs to /usr/bin/python3.13.
add_venv_package() {
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    command -v apt-get >/dev/null ||
        fail "$python has no ensurepip: install the venv package of your system's Python"
    case $("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))') in
    /usr/bin/*) ;;
    *) fail "$python has no ensurepip, and it is not the system's: use another with PYTHON=…" ;;
    esac
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        fail "$python cannot make virtual environments yet: run  sudo apt-get install $package"
    fi
    echo "install: adding $package, without which $python cannot make $venv"
    get="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq"
    # A fresh image has no package lists yet, an old one has outdated lists.
    $get install -y --no-install-recommends "$package" >/dev/null 2>&1 || {
        $get update && $get install -y --no-install-recommends "$package" >/dev/null
    } || fail "apt-get could not install $package"
}

if ! usable; then
    command -v "$python" >/dev/null || fail "there is no $python: install Python 3.11 or newer"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version 2>&1) is too old: Python 3.11 or newer is needed (PYTHON=…)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || add_venv_package
    ours=yes
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

echo "install: .[$extras] into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt -e ".[$extras]" ||
    fail "pip failed (a package without a ready-made wheel needs gcc and python3-dev)"
touch "$venv/.installed$suffix"
