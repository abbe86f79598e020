"""Throughput and latency of a cluster on this machine, beside what bare sockets do."""
