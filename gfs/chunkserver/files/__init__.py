"""What lies on a disk, byte by byte, and the blocking code that reads and writes it: the
layout of a chunk file, an open chunk file, the redo journal, the write-intent records, and
how a long call reports its progress. No Trio, no network: it runs in a disk's threads."""
