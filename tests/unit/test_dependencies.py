"""The floors of what parses bytes of strangers, and what ``make audit`` makes of an answer."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

#: The first version without the holes that are known, and the newest of these.
FIRST_WITHOUT = {
    "h11": ("0.16", "CVE-2025-43859: requests smuggled in chunks"),
    "hypercorn": ("0.16", "a denial of service"),
    "multipart": ("1.3.1", "CVE-2026-28356: exponential parsing of part headers"),
    "pyjwt": ("2.15", "CVE-2026-101917 and before: checks of a token left out"),
    "quart": ("0.20", "CVE-2024-49767: unbounded forms"),
    "werkzeug": ("3.1.6", "CVE-2026-27199; forms before 3.0.6"),
    "cryptography": ("46.0.7", "CVE-2026-39892"),
}


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@pytest.mark.parametrize("name", FIRST_WITHOUT)
def test_the_floor_is_without_known_holes(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["server"], *extras["test"]]
    floors = dict(found.groups() for text in needed if (found := re.match(r"(.+)>=(.+)", text)))
    version, hole = FIRST_WITHOUT[name]
    assert numbers(floors[name]) >= numbers(version), hole


GOOD: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
BAD = GOOD | {"name": "b", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited"}
OURS = {"name": "gfs", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ([GOOD, OURS], 0, "no known hole"),
        ([GOOD, BAD], 1, "b 1: PYSEC-1, fixed in 2"),
        ([GOOD, UNKNOWN], 2, "1 of 2 packages were NOT audited (c)"),
        ([BAD, UNKNOWN], 1, "NOT audited"),
        ([], 2, "no package was audited"),
    ],
)
def test_what_was_not_audited_is_no_success(answer: list[Any], status: int, said: str) -> None:
    verdict = runpy.run_path(str(ROOT / "tools" / "audit_answer.py"))["verdict"]
    found, lines = verdict(json.dumps({"dependencies": answer}))
    assert found == status
    assert said in "\n".join(lines)
    assert verdict("no JSON")[0] == 2
