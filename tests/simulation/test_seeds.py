"""The general simulation's fixed seeds, of which ``make test`` runs a part; and that a
seed is one run, wherever it is run.

Each in a process of its own: its file system is of smaller blocks (:mod:`.scale`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from share import share, turn

ROOT = Path(__file__).parents[2]
SEEDS = turn(200)
#: In one test: minutes on a slow machine, of the fifteen that a test may take.
BLOCK = 20
#: For all of them, on a machine that does other work as well.
PATIENCE_SECONDS = 3600


def simulate(*arguments: str, hash_seed: str = "0") -> str:
    """What ``python -m tests.simulation`` prints. Fails if a seed does."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def jobs() -> int:
    """This worker's share of the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, (os.cpu_count() or 1) // workers)


@pytest.mark.parametrize("first", SEEDS[::BLOCK])
def test_the_fixed_seeds_are_clean(first: int) -> None:
    seeds = min(BLOCK, SEEDS.stop - first)
    chosen = ("--first", f"{first}", "--seeds", f"{seeds}")
    out = simulate(*chosen, "--jobs", str(jobs()), "--keep-going")
    assert f"{seeds} seeds in " in out


def test_in_some_of_the_fixed_seeds_a_server_comes_back_after_an_hour() -> None:
    """The rarest of what is to happen."""
    script = (
        "from tests.simulation.many import Choice\n"
        "print(sum(Choice().plan(seed).absence is not None for seed in range(200)))\n"
    )
    count = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert int(count) >= 2


@pytest.mark.costly
def test_a_server_is_away_for_an_hour_and_back_among_clients_at_work() -> None:
    out = simulate("--seed", "1", "--faults", "long absence")
    left = re.search(r"^ *([\d.]+) FAULT (?:kill|power cut) (\w+) for", out, re.MULTILINE)
    assert left is not None
    back = re.search(rf"^ *([\d.]+) FAULT start {left[2]}$", out, re.MULTILINE)
    assert back is not None
    assert float(back[1]) - float(left[1]) >= 3600
    calls = [float(at) for at in re.findall(r"^ *([\d.]+) client\d: ", out, re.MULTILINE)]
    assert min(calls) < float(left[1])
    assert max(calls) > float(back[1])
    # Nobody is at work for longer than told, but for that hour.
    assert not [at for at in calls if 120 < at < 3500]


# Those of full size cost ten times the others: with all seeds alone, and shorter, with as many
# faults.
@pytest.mark.parametrize(
    ("scale", "seed", "hours", "rate"),
    [
        ("", 3, 0.0023456789012345, 2.3456789012345),
        ("full", 2, 2.345678901234e-05, 234.56789012345),
    ][: share(2)],
    ids=["", "full"][: share(2)],
)
def test_the_command_that_replays_a_seed_is_exact(
    scale: str, seed: int, hours: float, rate: float
) -> None:
    """A digit less of the length or of the rate, or other sizes, and it is another run."""
    chosen = (
        f"Choice({hours}, ['cut', 'bit flip'], {rate}, "
        "durability='fsync', only=('put', 'stat', 'get'))"
    )
    script = (
        "from tests.simulation.many import Choice\n"
        f"choice = {chosen}\n"
        f"print(choice.command({seed}))\n"
        f"print(choice.run({seed}).digest)\n"
    )
    environment = {**os.environ, "GFS_SIMULATION_SCALE": scale}
    command, digest = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    del environment["GFS_SIMULATION_SCALE"]
    replayed = subprocess.run(
        command.replace("python", sys.executable, 1),
        shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"trace {digest}, " in replayed


@pytest.mark.parametrize(
    ("count", "faults"),
    # In half an hour nobody is away for an hour: a seed in which that is so costs ten others.
    [(share(4), []), (1, ["--faults", "all", "--rate", "2", "--hours", "0.5"])],
    ids=["own", "all"],
)
def test_a_seed_is_the_same_run_in_every_process(count: int, faults: list[str]) -> None:
    """Every event of it at the same virtual time: the digests of the whole traces."""
    chosen = ["--seeds", f"{count}", "--jobs", "1", "--digests", *faults]

    def digests(hash_seed: str) -> list[str]:
        lines = simulate(*chosen, hash_seed=hash_seed).splitlines()
        return [line for line in lines if len(line.split()) == 2 and len(line) > 32]

    once = digests("1")
    assert len(once) == count
    assert once == digests("2")
