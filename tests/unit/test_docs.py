"""The pages that people read: settings as they are, links that lead somewhere."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from control.compute.settings import ComputeSettings
from control.quota.limits import Limits
from control.settings import ControlSettings
from control.storage.unfinished import StorageSettings
from gfs import blocks, config
from gfs.blocks import KIB, MIB
from gfs.cli import exits
from gfs.cli.command import SECTIONS as SECTIONS_OF_COMMANDS
from gfs.client import Client
from gfs.config import ChunkserverSettings, ClientSettings, MasterSettings, Settings
from gfs.errors import GfsError
from gfs.master.metadata import paths
from gfs.master.service import uploads
from gfs.protocol import messages

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = ROOT / "docs" / "settings.md"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"

ROLES: dict[str, type[Settings]] = {
    "master": MasterSettings,
    "chunkserver": ChunkserverSettings,
    "client": ClientSettings,
    "control": ControlSettings,
    "compute": ComputeSettings,
    "quota": Limits,
    "storage": StorageSettings,
}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def shown_default(name: str, value: Any) -> str:
    """A default as the page writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if "bytes" in name:
        per_second = "/s" if name.endswith("per_second") else ""
        unit, name = next(
            (unit, name)
            for unit, name in ((1024 * MIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B"))
            if value >= unit or unit == 1
        )
        return f"{value // unit} {name}{per_second}"
    if name.endswith("_seconds"):
        days = value / (24 * 3600)
        return f"{days:g} days" if days >= 1 else f"{value:g} s"
    return str(value)


@pytest.mark.parametrize("role", ROLES)
def test_every_setting_is_documented_with_its_default(role: str) -> None:
    text = SETTINGS.read_text(encoding="utf-8")
    found = re.search(rf"<!-- settings: {role} -->\n(.*?)<!-- end -->", text, re.S)
    reported = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| \S.{20,} \|$", found[1], flags=re.M)
    fields = msgspec.structs.fields(ROLES[role])
    assert reported == [(field.name, shown_default(field.name, field.default)) for field in fields]


@pytest.mark.parametrize("role", ROLES)
def test_the_settings_file_on_the_page_is_one(role: str, tmp_path: Path) -> None:
    text = SETTINGS.read_text(encoding="utf-8")
    [example] = re.findall(r"^```toml\n(.*?)^```$", text, flags=re.M | re.S)
    file = tmp_path / "gfs.toml"
    file.write_text(example, encoding="utf-8")
    settings = config.load(ROLES[role], role, file=file, environment={})
    assert isinstance(settings, ROLES[role])


def subclasses(kind: type[GfsError]) -> list[type[GfsError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]


def test_every_exit_code_is_documented_with_the_errors_that_end_so() -> None:
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    found = re.search(r"<!-- exit codes -->\n(.*?)<!-- end -->", text, re.S)
    reported = dict(re.findall(r"^\| ([\d, ]+) \| (.*) \|$", found[1], flags=re.M))
    codes = {int(code) for codes in reported for code in codes.split(", ")}
    own = {0, exits.EXIT_FAILED, exits.EXIT_PARTIAL}
    own |= {exits.EXIT_INTERRUPTED, exits.EXIT_STDOUT_CLOSED}
    signals = {exits.Interrupted(number).exit_code for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [kind for kind in subclasses(GfsError) if kind.__module__ == GfsError.__module__]
    assert codes == own | signals | {click.UsageError.exit_code} | {e.exit_code for e in ours}
    for code in ("2", "3"):
        named = set(re.findall(r"`([a-z_]+)`", reported[code])) - {"retry_seconds"}
        assert named == {kind.code for kind in ours if kind.exit_code == int(code)}


def test_the_messages_of_commands_on_the_page_are_printed_by_some_code() -> None:
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    section = text.partition("\n## What commands say\n")[2].partition("\n\nEvery command")[0]
    code = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "gfs").rglob("*.py"))
    joined = re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", code))
    messages = re.findall(r"^\| (?!it says|---)(.+?) \|", section, re.M)
    assert len(messages) > 10
    parts = [
        part.strip() for m in messages for part in re.split(r"…|\b[NM]\b|[:;,()]|exit code", m)
    ]
    assert [part for part in parts if len(part) > 8 and part not in joined] == []


@pytest.mark.parametrize(
    "said",
    [
        f"1 to {paths.SEGMENT_BYTES_MAX} bytes of UTF-8",
        f"up to {messages.PATH_BYTES_MAX} bytes",
        f"{blocks.CHUNK_BYTES // MIB} MiB, {blocks.BLOCK_BYTES // KIB} KiB, "
        f"up to {messages.PACKET_BYTES_MAX // MIB} MiB",
        f"1 to {uploads.REPLICATION_MAX} for each file, {MasterSettings().replication} by default",
        f"one message of at most {messages.Publish.BODY_BYTES_MAX // MIB} MiB",
        f"buffers of {ClientSettings().memory_bytes // MIB} MiB",
    ],
)
def test_the_limits_are_those_of_the_code(said: str) -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    assert said in text.partition("\n## Limits\n")[2]


def test_a_published_file_may_have_the_chunks_the_page_says() -> None:
    chunk = messages.PublishedChunk(2**64 - 1, 2**32 - 1, blocks.CHUNK_BYTES, [0, 1, 2])
    room = messages.Publish.BODY_BYTES_MAX // len(msgspec.msgpack.encode(chunk))
    assert room >= 600_000
    assert 600_000 * blocks.CHUNK_BYTES >= 36 * 1024**4


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page, as its headings are commonly turned into ids."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_pages_name_exist(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    places = r"`((?:gfs|control|tests|bench|docs|tools)/[\w/]+\.\w+)(?:::(\w+))?`"
    for path, test in re.findall(places, text):
        if not path.startswith("bench/out/"):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
        is_test = rf"^(async )?def {test}\("
        assert not test or re.search(is_test, (ROOT / path).read_text(), re.M), test


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    text = index.read_text(encoding="utf-8")
    others = {page.name for page in index.parent.glob("*.md")} - {index.name}
    assert others == set(re.findall(r"^\| \[[\w.]+\]\((\w+\.md)\) \|", text, flags=re.M))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_the_figures_of_the_readme_are_the_measured_ones() -> None:
    measured = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = readme.partition("| | measured |\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(rows) == 3
    for row in rows:
        for figure in re.findall(r"[\d.,]+(?: to [\d.]+)?(?:%| MiB/s| s\b)", row):
            assert figure in measured, figure


#: Of the paper, but for its assumptions (2.1) and what is said by their parts; and what
#: it left out.
SECTIONS = [
    *("2.2", "2.3", "2.4", "2.5", "2.6.1", "2.6.2", "2.6.3", "2.7.1", "2.7.2"),
    *("3.1", "3.2", "3.3", "3.4", "4.1", "4.2", "4.3", "4.4", "4.5"),
    *("5.1.1", "5.1.2", "5.1.3", "5.2", "5.3"),
    "Beyond",
]


def rows_of_the_paper() -> list[list[str]]:
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\|.*", text, re.M)[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_section_of_the_paper_has_its_row() -> None:
    found = [row[0].partition(" ")[0] for row in rows_of_the_paper()]
    assert list(dict.fromkeys(found)) == SECTIONS


def test_every_row_of_the_paper_names_tests_that_exist() -> None:
    for section, what, _, tests in rows_of_the_paper():
        assert what, section
        named = re.findall(r"`([^`]+)`", tests)
        assert named, section
        for name in named:
            assert re.fullmatch(r"tests/\w+/test_\w+\.py", name), (section, name)


def test_every_command_of_the_paper_is_one() -> None:
    known = {name for commands in SECTIONS_OF_COMMANDS.values() for name in commands}
    for section, _, used, _ in rows_of_the_paper():
        for name in re.findall(r"`gfs (\w+)", used):
            assert name in known, (section, name)
        for name in re.findall(r"`fs\.(\w+)", used):
            assert hasattr(Client, name), (section, name)
        settings = {f.name for role in ROLES.values() for f in msgspec.structs.fields(role)}
        for name in re.findall(r"`([a-z]+_\w+)`", used):
            assert name in settings, (section, name)


def test_every_claim_of_the_security_page_names_its_test() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    tables = "\n".join(re.findall(r"^\| claim.*?(?=^$)", text, re.M | re.S))
    rows = re.findall(r"^\| (?!claim|---)(.+?) \| (.+) \|$", tables, re.M)
    assert len(rows) > 20
    assert [claim for claim, held in rows if "`tests/" not in held] == []
