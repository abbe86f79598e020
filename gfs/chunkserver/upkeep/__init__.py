"""The background tasks of a chunkserver: it checks its files (:mod:`.scanning`) and reads them
(:mod:`.scrub`), writes back idle replicas (:mod:`.write_back`), saves its record
(:mod:`.save_record`), deletes what the master ordered (:mod:`.delete`), drains a disk
(:mod:`.drain`), and chooses between two files of one chunk (:mod:`.resolve_duplicates`)."""

from gfs.chunkserver.upkeep.delete import delete_all
from gfs.chunkserver.upkeep.drain import drain_disk
from gfs.chunkserver.upkeep.resolve_duplicates import keep_comparing
from gfs.chunkserver.upkeep.save_record import save_memory
from gfs.chunkserver.upkeep.scanning import look_at_damaged, scan
from gfs.chunkserver.upkeep.scrub import Scrubber
from gfs.chunkserver.upkeep.write_back import clear_intents, confirm_packs, tend_journal

__all__ = [
    "Scrubber",
    "clear_intents",
    "confirm_packs",
    "delete_all",
    "drain_disk",
    "keep_comparing",
    "look_at_damaged",
    "save_memory",
    "scan",
    "tend_journal",
]
