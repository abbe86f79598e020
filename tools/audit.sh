#!/bin/sh
# Ask a public list of advisories for known holes of every package that is installed.
#
#   PYTHON=python3 tools/audit.sh VENV [arguments of pip-audit, such as -s osv]
#
# pip-audit says of a package that the list did not answer for that it "could not be
# audited", and ends as if all was well. Here that is a failure: 0 means that every
# package was looked up and none has a known hole.
set -eu

python=${PYTHON:-python3}
venv=$1
shift
tool=$venv/audit
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

# In an environment of its own, so that what it needs itself is not audited.
if ! "$tool/bin/python" -c 'import pip_audit' 2>/dev/null; then
    "$python" -m venv "$tool"
    "$tool/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit || {
        rm -rf "$tool"
        echo "audit: pip cannot install pip-audit: no package was audited" >&2
        exit 2
    }
fi

packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$tool/bin/pip-audit" --path "$packages" --skip-editable --progress-spinner off \
    --format json --output "$answer" "$@" || true
"$python" tools/audit_answer.py "$answer"
