"""Packed replicas: many small replicas of one disk in two files, instead of a file for each.

*Why.* A replica of 1 KiB in a chunk file takes 8 KiB (a page of head, a page of data), an
inode and a name; to make it costs four system calls, and to read it cold as many. Here it is
a record of 64 bytes in ``packs.index`` and a slot of 1,024 bytes in ``packs.data``; a batch of
new replicas is two or three writes, and a read is one ``preadv`` of a file that is open.

*What is packed.* A whole new replica of 1 byte to 64 KiB (one block, so one sum), written or
copied as a whole. A packed replica never changes: not its bytes, not its version. Whatever
would change it (a grant of a new version, a write, an append, an upload that starts again)
*moves it out* first, into a chunk file of its own, where all of that is solved.

*The order of the writes*, and what follows from it at every instant, power cuts included:

1. A slot belongs to at most one record on the disk. It is given to another replica only after
   the record that had it is cleared, and **that is synced**. So no old record that a power
   cut could bring back ever finds another replica's bytes in its slot; and a hole is punched
   only where no record on the disk points any more.
2. While a replica has a record on the disk, no chunk file of that chunk on the disk is newer:
   a move-out makes the chunk file durable, with its name; then clears the record, and syncs
   that; and only then may the file change. So a start that finds both (it died in
   between) keeps the record, and drops the file, unless that has a higher version, or
   alone has the bytes (the record's may have been in the page cache only).
3. Where a write must be on the disk before it is acknowledged (``durability = "fsync"``, and
   every copy) both files are synced at the same time after the record is written, once for all
   batches that wait. Otherwise neither is synced, as with chunk files. So a power cut may leave a
   record without its bytes, in every mode, if that was not acknowledged as synced. They fail
   the sum, as the sum of no replica is that of what was there before; and a start looks: the
   records are numbered, and the head says up to which number all bytes are on the disk, as of
   some seconds ago. It verifies those after that, and drops those whose bytes are not there:
   better missing, and made again, than taken for good until somebody reads them.
4. No record crosses a sector (64 bytes at multiples of 64), and slots are whole sectors. So
   a torn write of a page tears no record, and changes no neighbour.
5. A deletion is synced in every mode, once for a batch. It needs no free space: it overwrites
   blocks that the index has; so space returns on a full disk, too, and there is no compactor.
6. So two records with one slot are the work of a disk that has lost a sync: a start keeps the
   one whose bytes are in the slot.

*Deleted slots.* Slots of 4 KiB and more are whole pages, smaller ones share them. When no
slot of a page is used any more, the page is punched out of the file, which gives its
block back to the disk. It may refuse, as nothing depends on that. A start punches again
what is not used: a process may have died between the sync and the punch, or between a
replica's bytes and its record.

*Damage.* The record has the sum of the bytes, and one of its own. A slot that fails its sum
is a corrupt replica, as a chunk file's block is. A record that fails its own sum says of
which chunk it was only perhaps: the replica is gone, as if its chunk file were deleted, and the
master has it made again. A missing file of the two, a newer one, the index of another disk, or
one with many damaged records, fails the disk, with an error that says what to do: nothing is
made in their place or cleared, as they may come back.

*A failed sync* of either file fails the disk, as that of the redo journal does.

*In memory*: the records as they are in the index, and a place in a table by handle. The
tables change in the disk's threads, under a lock that is not held during writes and syncs of
replicas. The index is written in whole pages, from memory: so one with a bad sector is made
good by the next write to it, and none has to be read first. A thread that reads takes no
lock: a record says whose it is, and a reader looks at it again after the read.
"""

from gfs.chunkserver.packs.layout import DATA_NAME, INDEX_NAME
from gfs.chunkserver.packs.packed import PackedFile, open_packed
from gfs.chunkserver.packs.packs import Made, Packs

__all__ = [
    "DATA_NAME",
    "INDEX_NAME",
    "Made",
    "PackedFile",
    "Packs",
    "open_packed",
]
