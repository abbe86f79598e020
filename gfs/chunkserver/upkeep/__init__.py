"""What a chunkserver does without a client: scrubbing, scanning, deleting what the master
ordered, draining a disk, and choosing between two files of one chunk."""
