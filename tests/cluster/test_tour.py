"""The README's tour, command by command, on a real cluster.

The blocks are taken out of README.md as they stand: ``console`` blocks are typed
into one bash, ``python`` blocks are run as scripts where they stand between them,
and both must print what the page shows. The user of the tour is one whose home
directory is empty and who has just said ``make up``, so the cluster is found as
everybody finds it: where ``gfs up`` keeps it by default.

What varies from run to run may differ from the page, in kind but not in shape:
see ``VARIES``. ``...`` on the page stands for anything. Runs of spaces count as
one: the width of a column follows what is in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import Cluster, environment

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TOUR = "## A two-minute tour\n"
TOUR_SECONDS_MAX = 120

VARIES = [
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",  # when it was made
    r"\b[0-9a-f]{16}\b",  # the cluster's id
    r"\b[0-9a-f]{12}\b",  # a chunkserver's id
    r"127\.0\.0\.1:\d+",
    r"\d[\d.]* [KMGT]iB \d[\d.]* [KMGT]iB(?= +\d+ )",  # a disk's used and free space
    r"(?<=iB )\d+(?= +\d[\d.]* s ago)",  # replicas on a server: some may wait for collection
    r"\d[\d.]* s ago",
    r"(?<=^0 )\d+(?= 1 )",  # a handle: put and replaced chunks share one count
]
#: One expression for all, so that no rule sees what another made.
ANY_OF_THEM = re.compile("|".join(f"({rule})" for rule in VARIES))
MARK = "@@ command %d ended with "


class Step(NamedTuple):
    """One command, and what the page says that it prints."""

    command: str
    printed: list[str]


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of the tour."""
    text = README.read_text(encoding="utf-8")
    assert text.count(TOUR) == 1
    tour = re.split(r"^## ", text.partition(TOUR)[2], flags=re.M)[0]
    assert tour.count("```") % 2 == 0
    return re.findall(r"^```(\w+)\n(.*?)^```$", tour, flags=re.M | re.S)


def console_steps(text: str) -> Iterator[Step]:
    step: Step | None = None
    for line in text.splitlines():
        if line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(line[2:], [])
        elif line.startswith("> ") and step is not None and step.command.endswith("\\"):
            step = Step(f"{step.command}\n{line[2:]}", [])
        else:
            assert step is not None, f"printed by no command: {line}"
            step.printed.append(line)
    assert step is not None
    yield step


def python_step(script: Path, text: str) -> Step:
    """The block as a script; what it prints stands behind each ``print``."""
    script.write_text(text, encoding="utf-8")
    printed = re.findall(r"^ *print\(.*\)  # (.*)$", text, flags=re.M)
    assert len(printed) == text.count("print(")
    return Step(f"python {script.name}", printed)


def tour_steps(directory: Path) -> list[Step]:
    steps: list[Step] = []
    for number, (language, text) in enumerate(blocks()):
        if language == "console":
            steps += console_steps(text)
        else:
            assert language == "python", f"a block of the tour that no test can run: {language}"
            steps.append(python_step(directory / f"tour-{number}.py", text))
    return steps


def bash_script(steps: list[Step]) -> str:
    """All commands for one bash, which says after each how it ended. What a
    command complains about comes after what it prints."""
    lines: list[str] = []
    for number, step in enumerate(steps):
        mark = MARK % number
        lines += [
            f"{{ {step.command}",
            "} < /dev/null 2> complaints.txt",
            "status=$?; grep '^gfs: ' complaints.txt",
            f'echo; echo "{mark}$status"',
        ]
    return "\n".join(lines) + "\n"


def outcome(output: str, number: int) -> tuple[list[str], int]:
    """What command ``number`` printed, and its exit code."""
    start = output.partition(MARK % (number - 1))[2].partition("\n")[2] if number else output
    text, mark, rest = start.partition("\n" + MARK % number)
    assert mark, f"the tour ended in command {number}:\n{output[-2000:]}"
    return text.splitlines(), int(rest.split()[0])


def shape(line: str) -> str:
    """``line`` with everything that varies replaced by what it is."""
    line = " ".join(line.split())
    return ANY_OF_THEM.sub(lambda found: f"<{found.lastindex}>", line)


def fits(shown: str, printed: str) -> bool:
    parts = [re.escape(part) for part in shape(shown).split("...")]
    return re.fullmatch(".*".join(parts), shape(printed)) is not None


def assert_as_shown(step: Step, printed: list[str], code: int) -> None:
    told = "\n".join([f"$ {step.command}", *printed])
    shown = "\n".join(step.printed)
    fails = any(line.startswith("gfs: ") for line in step.printed)
    assert (code != 0) == fails, f"exit code {code}:\n{told}"
    assert len(printed) == len(step.printed), f"{told}\n--- the page shows:\n{shown}"
    for line, actual in zip(step.printed, printed, strict=True):
        assert fits(line, actual), f"{told}\n--- the page shows:\n{shown}\n--- differs:\n{actual}"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home directory of somebody who has just said ``make up``."""
    home = tmp_path / "home"
    cluster = Cluster(tmp_path)
    cluster.state = home / ".local" / "state" / "gfs"
    try:
        cluster.start()
        yield home
    finally:
        cluster.stop()


def test_the_tour_shows_what_happens(home: Path) -> None:
    steps = tour_steps(home)
    changes = {"HOME": str(home), "TZ": "UTC"}
    changes["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = environment(**changes)
    variables.pop("XDG_STATE_HOME", None)
    done = subprocess.run(
        ["bash"],
        input=bash_script(steps).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=home,
        env=variables,
        timeout=TOUR_SECONDS_MAX,
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    for number, step in enumerate(steps):
        assert_as_shown(step, *outcome(output, number))


def test_the_tour_shows_every_command_for_files() -> None:
    tour = "".join(text for _, text in blocks())
    for command in (
        *("put", "get", "cat", "ls", "stat", "mkdir", "rm", "mv", "du"),
        *("status", "fsck", "locate"),
    ):
        assert re.search(rf"\bgfs {command}\b", tour), f"gfs {command} is not in the tour"


def test_make_up_starts_what_the_tour_runs_on() -> None:
    # Not with the flags of a `make test` that runs us.
    variables = {n: v for n, v in environment().items() if n not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(
        ["make", "--dry-run", "--assume-old=install", "up"],
        capture_output=True,
        cwd=ROOT,
        env=variables,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode().strip() == ".venv/bin/gfs up"
