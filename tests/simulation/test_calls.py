"""The general simulation makes every call that the client library has."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gfs.client import Client, ExistingFile, NewFile
from gfs.client.files import File

ROOT = Path(__file__).parents[2]
#: No more of them than it takes. The first make all calls, at a tenth of what all cost; if they
#: do not any more, the others follow.
FIRST = [12, 25, 14, 50, 43, 56, 32, 18, 39]
SEEDS = [*FIRST, *(seed for seed in range(60) if seed not in FIRST)]
#: These clusters have no shadow masters, see :mod:`.shadowed`, and no engine that elects one of
#: them; no server is gone for good, and no backup was restored: see ``tests/cluster``. Every file
#: that is replaced is kept for its readers, who would see an error otherwise: see ``test_trash``.
#: There are no files of whole chunks: see ``test_join``.
ELSEWHERE = {
    *("Client.promote", "Client.forget_shadow", "Client.election"),
    *("Client.forget_server", "Client.accept_restore", "NewFile.keep_for_readers"),
    "NewFile.join",
}

KINDS = (Client, ExistingFile, NewFile)

#: Counts the calls that the workload makes by itself, not those the library makes of
#: its own.
SPY = """
import collections, functools, json, sys
from tests.simulation import many, workload
from gfs.client import Client, ExistingFile, NewFile

made = collections.Counter()

def spied(name, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        made[name] += sys._getframe(1).f_code.co_filename == workload.__file__
        return function(*args, **kwargs)
    return call

wanted = set(json.loads(sys.argv[1]))
for kind in (Client, ExistingFile, NewFile):
    for name in [each for each in dir(kind) if f"{kind.__name__}.{each}" in wanted]:
        setattr(kind, name, spied(f"{kind.__name__}.{name}", getattr(kind, name)))
for seed in json.loads(sys.argv[2]):
    if wanted <= set(+made):
        break
    outcome = many.Choice(0.01, []).run(seed)
    assert not outcome.failure, outcome.failure
print(json.dumps([name for name, count in made.items() if count]))
"""


def refuses(function: object) -> bool:
    """Whether a method of all files is only there to say that this kind has it not."""
    return "_refuse" in function.__code__.co_names  # type: ignore[attr-defined]


def public(kind: type) -> list[str]:
    """The names of its methods, but for those that only refuse."""
    methods = [each for each in inspect.getmembers(kind, inspect.isfunction) if each[0][0] != "_"]
    return [
        name
        for name, function in methods
        if function is not getattr(File, name, None) or not refuses(function)
    ]


def every(kind: type) -> set[str]:
    return {f"{kind.__name__}.{name}" for name in public(kind)} - ELSEWHERE


def test_what_files_only_refuse_is_no_call() -> None:
    assert "pwrite" in public(ExistingFile)
    assert "pwrite" not in public(NewFile)
    assert {"write", "flush", "abort"} <= set(public(NewFile))


@pytest.fixture(scope="module")
def made() -> set[str]:
    wanted = [name for kind in KINDS for name in every(kind)]
    out = subprocess.run(
        [sys.executable, "-c", SPY, json.dumps(wanted), json.dumps(SEEDS)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}"}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    return set(json.loads(out))


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_is_called(kind: type, made: set[str]) -> None:
    assert every(kind) - made == set()
