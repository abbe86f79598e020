"""Words that are not used any more, and what is said instead (docs/glossary.md).

A line is added when the last use of a word is gone. Spaces stand for line breaks and
underscores too, so names of functions and tests count, and sentences that go over two lines.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("gfs", "control", "docs", "tests", "bench", "tools", "deploy")
PRODUCT = ("gfs/", "control/", "docs/", "deploy/", "README.md")
SUFFIXES = {".py", ".md", ".js", ".html", ".toml", ".yml", ".yaml", ".json", ".service"}

#: Expression → what the glossary has for it.
GONE = {
    r"\bgive him\b": "set another",
    r"not begun is refused": "New mutations are refused.",
    r"never mind": "the verb of the field",
    r"everybodys": "shared, of all users",
    r"tell strangers": "report to clients without a credential",
    r"would be a wonder": "a sentence with a subject",
    r"no file can be called so": "this is not a file name",
    r"what is no number": "this is not a number",
    r"\bheralds?\b": "term announcer",
    r"\bhold deed": "deferred effect",
    r"went before its time": "purged early",
    r"is no setting\b": "is not a setting",
    r"bring back what was deleted": "restore deleted files",
    r"is no click command": "is not a click command",
    r"\bheir\b": "successor",
    r"\bkeepers\b": "the remaining servers",
    r"\bheed\b": "follow, read",
    r"deleted away": "deleted",
    r"\btwain\b": "two",
    r"(?<!replica )\bbeliev\w*": "count, elect, accept, trust",
}

#: The same for what users and readers of the product see: tests may still have these.
GONE_FROM_THE_PRODUCT = {
    r"\btold\b": "report, log, announce, send, print, answer",
    r"(?<![.])(?<!def )\btell(?:s|ing)?\b": "report, log, announce, send, print, answer",
    r"\banew\b": "again",
    r"\bfor ever\b": "without end, until cancelled",
    r"\bwhoever\b": "a sentence with a subject: a process that, a user who",
    r"\bin words that\b": "which says, which names",
    r"\b(?:written|write|writes|writing) down\b": "recorded, saved, logged",
    r"\b(?:doom|bury|burie|burial)\w*": "tombstone, schedule for deletion",
    r"\bmakes? no sense\b": "is invalid, cannot be read",
    r"\bputs? right\b": "corrected, repaired, undone",
    r"\blets? go of\b": "released",
}


def text_of(path: Path) -> str:
    """One line, with comment signs and quotes of adjoining strings taken out."""
    return re.sub(r'(?:"\s*\n\s*f?"|[\s_]+(?:#:? )?)', " ", path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    paths = [ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in FOLDERS:
        paths += [p for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES and p.is_file()]
    paths.remove(Path(__file__))
    return {str(path.relative_to(ROOT)): text_of(path) for path in sorted(paths)}


@pytest.mark.parametrize("word", GONE | GONE_FROM_THE_PRODUCT)
def test_the_word_is_not_used_any_more(word: str, texts: dict[str, str]) -> None:
    found = {
        name: text[max(0, match.start() - 30) : match.end() + 30]
        for name, text in texts.items()
        if (word in GONE or name.startswith(PRODUCT))
        and (match := re.search(word, text, flags=re.I))
    }
    assert not found, f"write {(GONE | GONE_FROM_THE_PRODUCT)[word]!r} instead"
