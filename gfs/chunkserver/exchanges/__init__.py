"""What clients ask for: reads, and the writes and record appends that pass along a chain of
chunkservers."""
