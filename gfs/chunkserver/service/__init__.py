"""One chunkserver from start to stop: its tasks, its link to the master, its metrics."""
