"""Programs that are particular about file systems."""

from __future__ import annotations

from pathlib import Path

import pytest
from mounts import Mount, sh


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree of C, in a repository."""
    made = tmp_path / "source"
    (made / "lib").mkdir(parents=True)
    rules = ["all: program\n"]
    for number in range(12):
        (made / "lib" / f"f{number}.c").write_text(
            f'#include "all.h"\nint f{number}(int x) {{ return x + {number}; }}\n'
        )
    (made / "lib" / "all.h").write_text("".join(f"int f{n}(int);\n" for n in range(12)))
    calls = " + ".join(f"f{n}(1)" for n in range(12))
    (made / "main.c").write_text(
        '#include <stdio.h>\n#include "lib/all.h"\n'
        f'int main(void) {{ printf("%d\\n", {calls}); }}\n'
    )
    objects = " ".join(f"lib/f{n}.o" for n in range(12))
    rules += [
        "program: main.o libf.a\n\tcc -o $@ main.o libf.a\n",
        f"libf.a: {objects}\n\tar rcs $@ $^\n",
        "%.o: %.c lib/all.h\n\tcc -g -Ilib -c -o $@ $<\n",
    ]
    (made / "Makefile").write_text("".join(rules))
    sh("git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm one", made)
    return made


def test_a_repository_is_cloned_built_and_committed_to(
    here: Path, source: Path, two: Mount
) -> None:
    there = two.path / here.name / "clone"
    sh(f"git clone -q {source} clone && cd clone && git fsck --strict 2>&1", here)
    assert sh("git status --porcelain && make -s -j2 && ./program", there) == "78\n"
    assert (
        sh("make -s && ./program && touch lib/f3.c && make -n | grep -c f3.o", there) == "78\n2\n"
    )
    who = "git -c user.name=a -c user.email=a@b"
    sh(f"echo >>main.c && {who} commit -qam two && git gc -q && git log --oneline | wc -l", there)
    sh("git diff --quiet && git fsck && git checkout -q HEAD~1 && git clean -fdxq", here / "clone")
    assert sh("git status --porcelain", here / "clone") == ""
    sh("rm -r clone", here)


def test_rsync_there_and_back(here: Path, source: Path, tmp_path: Path) -> None:
    sh(
        "seq 2000000 >large; ln -s lib/all.h link; chmod 600 main.c; touch -d 2001-01-01 lib",
        source,
    )
    sh(f"rsync -a {source}/ there && rsync -a there/ {tmp_path}/back", here)
    sh(f"diff -r --no-dereference {source} {tmp_path}/back", here)
    assert sh(f"rsync -ain {source}/ there", here) == ""
    sh(f"seq 5 >>{source}/large; rm {source}/main.c", here)
    sh(f"rsync -a --inplace --no-whole-file --delete {source}/ there", here)
    assert sh(f"rsync -aicn --delete {source}/ there", here) == ""
