"""What README.md and docs/ show, typed into a shell and compared with what it prints.

``console`` blocks are typed into one bash, ``python`` blocks are run as scripts where they
stand between them, and both must print what the page shows. The REST API is where the
page says by default, in a test on a port of its own: the one address is put for the other.

What varies from run to run may differ from the page, in kind but not in shape:
see ``VARIES``. ``...`` on the page stands for anything. Runs of spaces count as
one: the width of a column follows what is in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness import environment
from limits import HANG_SECONDS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TOUR = ROOT / "docs" / "tour.md"
CONTAINERS = ROOT / "docs" / "containers.md"

VARIES = [
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",  # when it was made
    r"\b[0-9a-f]{16}\b",  # the cluster's id
    r"\b[0-9a-f]{12}\b",  # a chunkserver's id
    r"127\.0\.0\.1:\d+",
    r"\b[0-9a-f]{8}\b",  # a container's id
    r"(?<=ssh -p )\d+",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    r'(?<="owner_id":")\w{6}(?=")',
    r'(?<=_at":)\d{10}',  # when it was made, over HTTP
    r"\d[\d.]* [KMGT]iB \d[\d.]* [KMGT]iB(?= +\d+ )",  # a disk's used and free space
    # Replicas on a server, of which some may wait for collection; how many are scrubbed.
    r"(?<=iB )\d+ +\d+ %(?= +\d[\d.]* s ago)",
    r"\d[\d.]* s ago",
    r"(?<=inode )\d+(?= /)",  # files that are put at once take them as they come
    r"(?<=^0 )[0-9a-f]+(?= 1 )",  # a handle: put and replaced chunks share one count
]
#: One expression for all, so that no rule sees what another made.
ANY_OF_THEM = re.compile("|".join(f"({rule})" for rule in VARIES))
API = "http://127.0.0.1:8080"
#: A busy disk may have cost a replica, which the page's reader sees repaired.
AT_REST = f"""timeout {HANG_SECONDS:g} bash -c "until
gfs status 2>&1 | grep -q '^chunks: 0 under-replicated'; do sleep 0.2; done" < /dev/null"""
MARK = "@@ command %d ended with "


class Step(NamedTuple):
    """One command, and what the page says that it prints."""

    command: str
    printed: list[str]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of this page."""
    text = page.read_text(encoding="utf-8")
    assert text.count("```") % 2 == 0
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S)
    assert found
    return found


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
    return Step(f"python {script}", printed)


def steps_of(page: Path, directory: Path) -> list[Step]:
    """Scripts are written into ``directory``."""
    steps: list[Step] = []
    for number, (language, text) in enumerate(blocks(page)):
        if language == "console":
            steps += console_steps(text)
        else:
            assert language == "python", f"a block that no test can run: {language}"
            steps.append(python_step(directory / f"{page.stem}-{number}.py", text))
    return steps


def bash_script(steps: list[Step], complaints: Path) -> str:
    """All commands for one bash, which prints after each how it ended. The errors of a
    command come after its output."""
    lines: list[str] = []
    for number, step in enumerate(steps):
        mark = MARK % number
        if step.command.startswith(("gfs status", "gfs locate", "gfs fsck")):
            lines.append(AT_REST)
        lines += [
            f"{{ {step.command}",
            f"}} < /dev/null 2> {complaints}",
            f"status=$?; grep '^gfs: ' {complaints}",
            f'echo; echo "{mark}$status"',
        ]
    return "\n".join(lines) + "\n"


def outcome(output: str, number: int) -> tuple[list[str], int]:
    """What command ``number`` printed, and its exit code."""
    start = output.partition(MARK % (number - 1))[2].partition("\n")[2] if number else output
    text, mark, rest = start.partition("\n" + MARK % number)
    assert mark, f"it ended in command {number}:\n{output[-2000:]}"
    return text.splitlines(), int(rest.split()[0])


def shape(line: str) -> str:
    """``line`` with everything that varies replaced by what it is."""
    line = " ".join(line.split())
    return ANY_OF_THEM.sub(lambda found: f"<{found.lastindex}>", line)


def fits(shown: str, printed: str) -> bool:
    parts = [re.escape(part) for part in shape(shown).split("...")]
    return re.fullmatch(".*".join(parts), shape(printed)) is not None


def assert_as_shown(step: Step, printed: list[str], code: int) -> None:
    reported = "\n".join([f"$ {step.command}", *printed])
    shown = "\n".join(step.printed)
    fails = any(line.startswith("gfs: ") for line in step.printed)
    assert (code != 0) == fails, f"exit code {code}:\n{reported}"
    assert len(printed) == len(step.printed), f"{reported}\n--- the page shows:\n{shown}"
    for line, actual in zip(step.printed, printed, strict=True):
        assert fits(line, actual), (
            f"{reported}\n--- the page shows:\n{shown}\n--- differs:\n{actual}"
        )


def follow(pages: Sequence[Path], home: Path, api: str) -> None:
    """Type all blocks of these pages into one shell of a user whose home directory is
    ``home``, and check that it prints what they show."""
    steps = [step for page in pages for step in steps_of(page, home)]
    variables = environment(
        HOME=str(home),
        TMPDIR=str(home),
        TZ="UTC",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    variables.pop("XDG_STATE_HOME", None)
    done = subprocess.run(
        ["bash"],
        input=bash_script(steps, home / "complaints.txt").replace(API, api).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=home,
        env=variables,
        timeout=HANG_SECONDS * len(pages),
        check=False,
    )
    output = done.stdout.decode(errors="replace")
    for number, step in enumerate(steps):
        assert_as_shown(step, *outcome(output, number))
