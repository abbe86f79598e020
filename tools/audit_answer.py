"""Says what an answer of pip-audit means: see ``audit.sh``, which calls it.

Exit status: 0 if every package was audited and none has a known hole, 1 if one has, 2 if
packages were not audited.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES_SHOWN = 5


def verdict(text: str) -> tuple[int, list[str]]:
    """The exit status for pip-audit's JSON, and what to print."""
    try:
        packages: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        packages = []
    if not packages:
        return 2, ["audit: pip-audit gave no answer: no package was audited"]
    lines = []
    skipped = []
    for package in packages:
        if "skip_reason" in package:
            if "editable" not in package["skip_reason"]:
                skipped.append(package["name"])
            continue
        for hole in package["vulns"]:
            fixed = ", ".join(hole["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {hole['id']}, fixed in {fixed}")
    status = 1 if lines else 0
    if skipped:
        some = ", ".join(skipped[:NAMES_SHOWN]) + (", ..." if len(skipped) > NAMES_SHOWN else "")
        lines.append(
            f"audit: {len(skipped)} of {len(packages)} packages were NOT audited ({some}): the "
            "list of advisories cannot be reached or does not know them. Try again on a "
            "machine with a network, or another list: make audit ARGS='-s osv'"
        )
        status = status or 2
    elif not lines:
        lines.append(f"audit: {len(packages)} packages have no known hole")
    return status, lines


if __name__ == "__main__":
    status, lines = verdict(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("\n".join(lines))
    sys.exit(status)
