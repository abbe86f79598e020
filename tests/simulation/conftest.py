"""What quiet hours of a simulated cluster cost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gfs.blocks import MIB
from gfs.chunkserver.upkeep import scrub

#: Where it is the subject, or finds the damage that is.
SCRUBBED = {
    "test_checker", "test_damage", "test_disks", "test_lost_writes", "test_packed",
    "test_possibly_stale", "test_power", "test_regressions", "test_scrub", "test_truth",
}  # fmt: skip


@pytest.fixture
def slow_scrub() -> Iterator[None]:
    """Servers that serve nobody verify one MiB a second, not eight: at that pace the scrub is
    half of all that a cluster at rest does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrub, "IDLE_BYTES_PER_SECOND_MIN", MIB)
        yield


@pytest.fixture(autouse=True)
def quiet_hours(request: pytest.FixtureRequest) -> None:
    if request.module.__name__.rpartition(".")[2] not in SCRUBBED:
        request.getfixturevalue("slow_scrub")
