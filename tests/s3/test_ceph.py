"""The list of the ceph s3-tests, and how a run is compared with it. The suite itself is run by
hand: see ceph.py."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from ceph import LISTED, judge, results


def test_a_run_is_compared_with_the_list(tmp_path: Path) -> None:
    file = tmp_path / "results.xml"
    file.write_text(
        "<testsuites><testsuite><testcase name='good'/><testcase name='bad[a]'>"
        "<failure/></testcase><testcase name='bad[b]'/><testcase name='left'><skipped/></testcase>"
        "</testsuite></testsuites>"
    )
    passed = results(file)
    assert passed == {"good": True, "bad": False, "left": False}
    listed = {"must_pass": ["good"], "excluded": [{"reason": "r", "tests": ["bad", "left"]}]}
    assert judge(passed, listed) == []
    listed = {"must_pass": ["bad"], "excluded": [{"reason": "r", "tests": ["good", "bad"]}]}
    assert judge(passed, listed) == [
        "is listed twice: bad",
        "is excluded, and passes: good",
        "must pass, and does not: bad",
        "is not listed, and fails: left",
    ]


def test_the_list_has_each_test_once_and_a_reason_for_each_exclusion() -> None:
    listed = tomllib.loads(LISTED.read_text())
    names = [*listed["must_pass"], *(n for g in listed["excluded"] for n in g["tests"])]
    assert len(set(names)) == len(names)
    assert all(group["reason"] for group in listed["excluded"])
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"{len(listed['must_pass'])} of {len(names)} of ceph's s3-tests" in readme
