"""What the checker holds to that it excused before: refusals of ``mkdir``, and what ``status``
says while a disk is down."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any, cast

import pytest

from gfs.client import Client, Entry
from gfs.config import ChunkserverSettings, MasterSettings
from gfs.errors import GfsError, NotFound
from gfs.testing import SimCluster, run_simulated
from gfs.testing.trace import Trace

from .faults import Faults
from .linear import find_order
from .metadata import read_metadata
from .names_model import MakeDirectory
from .plan import make_plan
from .record import Record, Violation
from .seeds import over_seeds
from .settle import Settling
from .truth import LOST_CHUNKS, LOST_REPLICAS
from .workload import Actor


def test_mkdir_is_refused_and_answered_for_a_reason() -> None:
    class Answers:
        def __init__(self, answer: Any) -> None:
            self._answer = answer

        async def mkdir(self, path: str, *, parents: bool, exist_ok: bool) -> Entry:
            if isinstance(self._answer, GfsError):
                raise self._answer
            return cast("Entry", self._answer)

    async def make(answer: Any) -> Record:
        record = Record(Trace())
        actor = Actor("one", record, Random(3), make_plan(0, kinds=[]), SimCluster(0), "")
        with suppress(NotFound):
            await actor.mkdir(cast("Client", Answers(answer)))
        return record

    async def refused() -> None:
        record = await make(NotFound("x"))
        (event,) = record.history
        assert event.outcome == "not_found"
        # Where nothing is, only what lacks its parent is refused.
        call = cast("MakeDirectory", event.call)
        assert (find_order(record.history) is None) == (call.parents or len(call.path) == 1)

    async def answered() -> None:
        with pytest.raises(Violation, match="was made"):
            await make(Entry("/elsewhere", "directory", 7, 0, 0, 0, 0))

    run_simulated(0, refused)
    run_simulated(0, answered)


@pytest.mark.costly
@over_seeds([0])
async def test_status_is_held_to_the_truth_while_a_disk_is_down() -> None:
    """All that is lost then, and no more, is what only that disk had."""
    plan = make_plan(0, kinds=[])
    plan.master = MasterSettings(replication=1, replicas_min=1)
    plan.chunkserver = ChunkserverSettings(packed_bytes_max=0)
    cluster = SimCluster(
        0, chunkservers=1, disks=2, master=plan.master, chunkserver=plan.chunkserver
    )
    async with cluster, cluster.client() as fs:
        for number in range(8):
            await fs.put(b"bytes", f"/{number}")
        disk = cluster.machine("chunkserver0").disk
        gone, other = ([p for p in disk.paths(each) if ".chunk" in p] for each in cluster.disks)
        assert gone
        assert other
        await cluster.crash("chunkserver0")
        volume = disk.unmount(cluster.disks[0])
        await cluster.start("chunkserver0")
        disk.mount_again(cluster.disks[0], volume)  # and its server does not use it by itself
        record = Record(cluster.trace)
        settling = Settling(cluster, plan, record, Faults(cluster, plan, record, []))
        settling.faults.failed.add(("chunkserver0", cluster.disks[0]))
        await settling._check_status(fs)
        status, metadata = await fs.status(), read_metadata(cluster.directory)
        truth = settling._truth(status, metadata)
        assert len(truth.gone) == status.totals.lost == len(gone)
        for name, wrong in [
            ("lost", 0),
            *[(each, len(gone) + 1) for each in (*LOST_CHUNKS, *LOST_REPLICAS)],
        ]:
            before = getattr(status.totals, name)
            setattr(status.totals, name, wrong)
            [found] = truth.differences(metadata, status)
            assert found.startswith(name)
            setattr(status.totals, name, before)
